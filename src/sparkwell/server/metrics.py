"""What /metrics shows: latency histograms kept here, and the engine's own counts read on demand."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sparkwell.engine.core import Engine
from sparkwell.engine.request import Output

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class _EngineCollector(Collector):
    """EngineStats as metrics, taken at the moment of the scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        state = GaugeMetricFamily(
            "sparkwell_requests", "Requests in the engine by state", labels=["state"]
        )
        state.add_metric(["waiting"], stats.waiting)
        state.add_metric(["running"], stats.running)
        yield state
        pages = GaugeMetricFamily("sparkwell_cache_pages", "Cache pages by state", labels=["state"])
        pages.add_metric(["total"], stats.pages_total)
        pages.add_metric(["used"], stats.pages_used)
        pages.add_metric(["cached"], stats.pages_cached)
        yield pages
        for name, what, value in (
            ("prompt_tokens", "Prompt tokens of admitted requests", stats.prompt_tokens),
            ("generated_tokens", "Tokens drawn", stats.generated_tokens),
            ("prefix_hit_tokens", "Prompt tokens found in the cache", stats.prefix_hit_tokens),
            ("preemptions", "Running requests put back for want of pages", stats.preemptions),
            ("engine_steps", "Forward passes", stats.steps),
        ):
            yield CounterMetricFamily(f"sparkwell_{name}", what, value=value)
        finished = CounterMetricFamily(
            "sparkwell_requests_finished", "Requests by how they ended", labels=["reason"]
        )
        for reason, count in sorted(stats.finished.items()):
            finished.add_metric([reason], count)
        yield finished


class Metrics:
    """The server's registry.  One for each app, so that two servers in a process do not mix.

    Every histogram counts choices: one of the n answers to one prompt.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token", _FIRST
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a choice", _BETWEEN
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds",
            "Mean time of a choice's tokens after the first one",
            _BETWEEN,
        )
        self._whole = self._histogram(
            "e2e_request_latency_seconds", "From arrival to the last token", _WHOLE
        )
        self._responses = Counter(
            "sparkwell_http_responses",
            "Answers by route and status",
            ["route", "status"],
            registry=self.registry,
        )

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"sparkwell_{name}", what, buckets=buckets, registry=self.registry)

    def response(self, route: str, status: int) -> None:
        """Count one HTTP answer; route is the pattern, so that the label stays bounded."""
        self._responses.labels(route, str(status)).inc()

    def tokens(self, count: int, seconds: float) -> None:
        """`count` tokens came `seconds` after the one before."""
        for _ in range(count):
            self._inter_token.observe(seconds / count)

    def finished(self, output: Output) -> None:
        """Record the latencies of a choice from its last output; a cancelled one has none."""
        timing = output.timing
        if output.finish_reason not in ("stop", "length"):
            return
        if timing.first_token is None or timing.finished is None:
            return
        self._first_token.observe(timing.first_token - timing.arrival)
        self._whole.observe(timing.finished - timing.arrival)
        if output.output_tokens > 1:
            seconds = timing.finished - timing.first_token
            self._per_token.observe(seconds / (output.output_tokens - 1))

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)
