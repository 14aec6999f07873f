"""A run that is killed leaves no output, or a whole one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

from tokensurgeon.checkpoint.verify import verify_checkpoint


def test_a_kill_at_any_moment_leaves_nothing_or_a_verified_output(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tokensurgeon", "transplant", str(base), str(byte_level), str(output)]
    command += ["--method", "pieces"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - started
    assert verify_checkpoint(output, forward=False).passed
    randomness = random.Random(0)
    finished = 0
    for moment in sorted(randomness.uniform(0.2, 1.05) for _ in range(10)):
        if output.exists():
            output.rename(tmp_path / f"kept-{moment}")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moment * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if output.exists():
            finished += 1
            assert verify_checkpoint(output, forward=False).passed
    assert finished < 10
    if output.exists():
        output.rename(tmp_path / "kept-last")
    subprocess.run(command, check=True, capture_output=True)
    assert not list(tmp_path.glob(".out.tokensurgeon-*"))
