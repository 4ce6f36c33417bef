"""The command as a process: how fast it starts, signals, pipes, exit codes."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

TESTS = Path(__file__).resolve().parents[1]
FAKE = [sys.executable, str(TESTS / "cli" / "fake_model.py")]
REAL = [sys.executable, "-m", "sparkwell"]
ENV = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]),
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture
def spawn() -> Iterator["Spawn"]:
    started = Spawn()
    yield started
    for process in started.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Spawn:
    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(
        self, *arguments: str, delay: float = 0.0, stdin: int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [*FAKE, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENV | {"FAKE_DELAY": str(delay)},
        )
        self.processes.append(process)
        return process


def read_until(process: "subprocess.Popen[bytes]", text: bytes, *, stderr: bool = False) -> bytes:
    stream = process.stderr if stderr else process.stdout
    assert stream is not None
    got = b""
    while text not in got:
        ready, _, _ = select.select([stream], [], [], 20)
        assert ready, f"20 s without {text!r}: {got!r}"
        piece = os.read(stream.fileno(), 1000)
        assert piece, f"ended without {text!r}: {got!r}"
        got += piece
    return got


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = "torch triton transformers numpy fastapi uvicorn pydantic huggingface_hub"
    code = (
        "import sys, sparkwell.cli\n"
        f"heavy = {heavy!r}.split()\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
        "sys.argv = ['sparkwell', '--help']\n"
        "try: sparkwell.cli.main()\n"
        "finally: assert not [name for name in heavy if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], env=ENV, check=True, capture_output=True)

    def spent() -> float:
        times = os.times()
        return times.children_user + times.children_system

    best = 9.0
    for _ in range(5):
        start = spent()
        subprocess.run([*REAL, "--help"], env=ENV, check=True, capture_output=True)
        best = min(best, spent() - start)
    # Processor time, since a busy machine makes wall time mean nothing; 0.15 s where this was
    # written, and importing torch alone takes more than a second.
    assert best < 0.5, f"{best:.2f} s"


def test_no_arguments_show_the_help() -> None:
    done = subprocess.run(REAL, env=ENV, capture_output=True)
    assert b"generate" in done.stdout + done.stderr
    assert done.returncode == 2


def test_exit_codes() -> None:
    for line, code in (("version", 0), ("generate missing x", 1), ("generate fake x --n", 2)):
        done = subprocess.run([*FAKE, *line.split()], env=ENV, capture_output=True)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


def test_a_terminal_that_cannot_show_a_character() -> None:
    line = [*FAKE, "generate", "fake", "né", "--json", "--max-tokens", "1"]
    env = ENV | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run(line, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b'"prompt": "n?"' in done.stdout


def test_a_reader_that_leaves_ends_the_verb(spawn: Spawn) -> None:
    process = spawn("generate", "fake", "x", "--max-tokens", "399", delay=0.005)
    read_until(process, b"bcd")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""


def test_ctrl_c_ends_generate(spawn: Spawn) -> None:
    process = spawn("generate", "fake", "x", "--max-tokens", "399", delay=0.02)
    read_until(process, b"bcd")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == b""


def test_ctrl_c_ends_an_answer_and_not_the_chat(spawn: Spawn) -> None:
    process = spawn("chat", "fake", delay=0.02)
    assert process.stdin is not None
    process.stdin.write(b"count\n")
    process.stdin.flush()
    read_until(process, b"abc")
    process.send_signal(signal.SIGINT)
    read_until(process, b"[cancelled]", stderr=True)
    out, _ = process.communicate(b"more\n/exit\n", timeout=20)
    assert process.returncode == 0
    assert out.endswith(b"\nuau: more\n")  # what was said so far is remembered


def test_chat_in_a_terminal(spawn: Spawn) -> None:
    ours, theirs = pty.openpty()
    process = spawn("chat", "fake", delay=0.02, stdin=theirs)
    os.close(theirs)
    read_until(process, b"/reset begins anew", stderr=True)
    os.write(ours, b"one\n")
    read_until(process, b"u: one")
    time.sleep(0.3)  # until it waits for the next line
    process.send_signal(signal.SIGINT)  # at the prompt: a hint, and it goes on
    read_until(process, b"/reset begins anew", stderr=True)
    os.write(ours, b"x" * 200 + b"\n")  # fits the context of 400 once, not twice
    read_until(process, b"x" * 20)
    process.send_signal(signal.SIGINT)
    read_until(process, b"[cancelled]", stderr=True)
    os.write(ours, b"y" * 200 + b"\n")
    read_until(process, b"error: the prompt has", stderr=True)
    os.write(ours, b"/reset\ntwo\n")
    read_until(process, b"u: two")
    time.sleep(0.3)
    os.write(ours, b"\x04")  # Ctrl-D
    assert process.wait(20) == 0
    os.close(ours)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_serve_finishes_what_runs_when_told_to_stop(spawn: Spawn, sig: signal.Signals) -> None:
    process = spawn("serve", "fake", "--port", "0", "--api-key", "k", delay=0.03)
    line = read_until(process, b"/v1\n", stderr=True).decode()
    url = line.split(" at ")[1].strip()
    client = httpx.Client(base_url=url, headers={"Authorization": "Bearer k"}, timeout=20)
    with client, client.stream(
        "POST", "/completions", json={"model": "fake", "prompt": "x", "stream": True,
                                      "max_tokens": 40},
    ) as stream:  # fmt: skip
        rows = stream.iter_lines()
        assert next(rows).startswith("data: ")
        process.send_signal(sig)
        rest = list(rows)
    assert rest[-2] == "data: [DONE]"
    assert sum('"text":' in row or '"text": ' in row for row in rest) == 39
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert b"Traceback" not in err


def test_serve_says_when_it_cannot_listen(spawn: Spawn) -> None:
    first = spawn("serve", "fake", "--port", "0")
    line = read_until(first, b"/v1\n", stderr=True).decode()
    port = line.strip().removesuffix("/v1").rsplit(":", 1)[1]
    second = spawn("serve", "fake", "--port", port)
    _, err = second.communicate(timeout=20)
    assert second.returncode == 1
    assert f"error: cannot listen on 127.0.0.1 port {port}".encode() in err


def test_serve_warns_of_an_open_door(spawn: Spawn) -> None:
    process = spawn("serve", "fake", "--port", "0", "--host", "0.0.0.0")
    err = read_until(process, b"/v1\n", stderr=True)
    assert b"0.0.0.0 is reachable from other machines and no API key is asked for" in err
