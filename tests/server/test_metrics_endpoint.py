"""GET /metrics and /health."""

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.running_server import eventually, idle, make_engine, running, spell


def values(response: httpx.Response) -> dict[str, float]:
    """name{label=value,...} -> value, through Prometheus' own parser."""
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name
        + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_counts_follow_the_engine() -> None:
    engine = make_engine(next_token=spell("a stage:", end=False), num_pages=64)
    with running(engine) as served:
        served.complete(prompt="0123456789:", max_tokens=5)
        served.complete(prompt="0123456789:", max_tokens=2, n=2)
        served.complete(stop="s", max_tokens=20)
        served.complete(temperature=-1)
        served.get("/nowhere")
        served.get("/v1/models/fake/echo")
        eventually(lambda: idle(engine), "all pages are free")
        got = values(served.get("/metrics"))
    assert got["sparkwell_prompt_tokens_total"] == 11 + 22 + 3
    assert got["sparkwell_generated_tokens_total"] == 5 + 4 + 3
    assert got["sparkwell_prefix_hit_tokens_total"] == 16  # two full pages of 4, for two choices
    assert got["sparkwell_requests_finished_total{reason=length}"] == 3
    assert got["sparkwell_requests_finished_total{reason=stop}"] == 1
    assert got["sparkwell_requests{state=running}"] == got["sparkwell_requests{state=waiting}"] == 0
    assert got["sparkwell_cache_pages{state=total}"] == 64
    assert got["sparkwell_cache_pages{state=used}"] == 0
    assert got["sparkwell_cache_pages{state=cached}"] == engine.stats().pages_cached > 0
    assert got["sparkwell_preemptions_total"] == 0
    assert got["sparkwell_engine_steps_total"] == engine.stats().steps > 0
    post = "sparkwell_http_responses_total{route=/v1/completions}"
    assert (got[post + "{status=200}"], got[post + "{status=400}"]) == (3, 1)
    assert got["sparkwell_http_responses_total{route=none}{status=404}"] == 1
    assert got["sparkwell_http_responses_total{route=/v1/models/{name:path}}{status=200}"] == 1


def test_latencies() -> None:
    engine = make_engine(next_token=spell("a", end=False), delay=0.03)
    with running(engine) as served:
        started = time.monotonic()
        served.complete(prompt=["a:", "b:"], max_tokens=5)
        took = time.monotonic() - started
        served.complete(max_tokens=1)
        got = values(served.get("/metrics"))
    name = "sparkwell_time_to_first_token_seconds"
    assert got[name + "_count"] == 3
    assert 0.09 <= got[name + "_sum"] < 3 * took
    name = "sparkwell_inter_token_latency_seconds"
    assert got[name + "_count"] == 8  # four gaps for each of two choices
    assert 8 * 0.025 <= got[name + "_sum"] <= 2 * took
    name = "sparkwell_time_per_output_token_seconds"
    assert got[name + "_count"] == 2  # a single token has no time per token
    assert 2 * 0.03 <= got[name + "_sum"] <= 2 * took / 4
    name = "sparkwell_e2e_request_latency_seconds"
    assert got[name + "_count"] == 3
    assert 2 * 5 * 0.03 + 0.03 <= got[name + "_sum"] < 3 * took


def test_a_cancelled_request_has_no_latency() -> None:
    engine = make_engine(next_token=spell("a", end=False), delay=0.01)
    with running(engine) as served:
        with served.client().completions.create(
            model="fake/echo", prompt=":", max_tokens=200, stream=True
        ) as stream:
            next(stream)
        eventually(lambda: idle(engine), "all pages are free")
        got = values(served.get("/metrics"))
    assert got["sparkwell_requests_finished_total{reason=cancelled}"] == 1
    assert got["sparkwell_e2e_request_latency_seconds_count"] == 0


def test_two_servers_in_a_process_keep_their_own_counts() -> None:
    with (
        running(make_engine(next_token=spell("a"))) as one,
        running(make_engine(next_token=spell("a"))) as two,
    ):
        one.complete()
        name = "sparkwell_time_to_first_token_seconds_count"
        assert (one.metric(name), two.metric(name)) == (1, 0)


def test_health() -> None:
    with running(make_engine()) as served:
        answer = served.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
