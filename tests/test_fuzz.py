"""A seeded fuzzer: whatever is in a model folder, intake accepts it or says one sentence, soon and within bounds.

AMBER_FUZZ_MUTANTS and AMBER_FUZZ_COMMANDS say how many mutants are read in this process, and how many go through the command
line, some seconds each.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import main
from Utils.basics.errors import InputError
from Utils.encoder.loading import load_encoder

ROOT = Path(main.__file__).resolve().parent
MUTANTS = int(os.environ.get("AMBER_FUZZ_MUTANTS", "800"))
COMMANDS = int(os.environ.get("AMBER_FUZZ_COMMANDS", "6"))
ODD = [
    None, True, -1, 0, 1, 2, 7, 2**31, 2**40, 2**63, -(2**63), 10**30, 1e308, 0.5, "", "x", "\u202e<script>", "../..", [], {},
    [[]], {"type": "Sequence"}, "float64", "a" * 10_000,
]  # fmt: skip
"""Values that no honest config has where they are put."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif how == 1:
            del data[at : at + rng.randrange(1, 64)]
        elif how == 2:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(data)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Some values replaced by odd ones, keys dropped or renamed, branches put in each other's place."""
    content = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = list(branches(content))
        if not places:
            break
        holder, key = rng.choice(places)
        how = rng.randrange(5)
        if how <= 2:
            holder[key] = rng.choice(ODD)
        elif how == 3:
            del holder[key]
        else:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name])) if name in range_of(other) else None
    return json.dumps(content).encode()


def range_of(holder: dict | list):
    return holder if isinstance(holder, dict) else range(len(holder))


def branches(content: object):
    """Every place in a JSON document, as (holder, key); of long lists of tokens only some."""
    if isinstance(content, dict | list):
        keys = list(range_of(content))
        for key in keys if len(keys) < 50 else keys[:: len(keys) // 20]:
            yield content, key
            yield from branches(content[key])


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """The same for the header of a safetensors file, with a length that fits or lies."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    header = rng.choice([mutate_json, mutate_bytes])(header, rng)
    claimed = rng.choice([len(header), len(header), len(header), rng.randrange(2**64), rng.randrange(2**16)])
    return struct.pack("<Q", claimed) + header + rest


def mutants(folder: Path, count: int, seed: int):
    """Put one mutated file after the other into a folder; yields its name, and restores it afterwards."""
    rng = random.Random(seed)
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    for _ in range(count):
        name = rng.choice([*files, "model.safetensors", "config.json"])
        how = mutate_header if name.endswith(".safetensors") else rng.choice([mutate_json, mutate_json, mutate_bytes])
        (folder / name).write_bytes(how(files[name], rng))
        yield name
        (folder / name).write_bytes(files[name])


def test_every_mutant_is_accepted_or_refused_with_one_sentence(editable: Path, memory_taken):
    load_encoder(editable)
    began, ends, slowest = time.monotonic(), Counter(), 0.0
    for name in mutants(editable, MUTANTS, seed=5):
        start = time.monotonic()
        try:
            load_encoder(editable)
            ends[name, "accepted"] += 1
        except InputError as refused:
            message = str(refused)
            assert message.endswith("."), message
            assert "\n" not in message.replace(str(editable), ""), message
            assert len(message) < 1500, message
            ends[name, "refused"] += 1
        slowest = max(slowest, time.monotonic() - start)
    seconds, more = time.monotonic() - began, memory_taken()
    print(f"{MUTANTS} mutants in {seconds:.0f} s, the slowest {slowest:.2f} s, {more:.0f} MB more: {dict(ends)}")
    assert sum(ends.values()) == MUTANTS
    assert slowest < 30
    assert more < 1000
    assert {end for _, end in ends} == {"accepted", "refused"}
    assert seconds < 180


STEPS = (
    "--prompts", "24", "--rounds", "1", "--steps", "3", "--pooled-steps", "0", "--landscape-points", "3", "--restarts", "1",
)  # fmt: skip


def test_mutants_end_the_command_line_with_a_verdict_or_one_sentence(editable: Path, tiny_folder: Path, tmp_path: Path):
    """Python is started anew each time, two at a time."""
    copies = []
    for number, name in enumerate(mutants(editable, COMMANDS, seed=6)):
        copies.append((name, Path(shutil.copytree(editable, tmp_path / f"mutant{number}"))))

    def end(copy: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "main.py"), "--model", str(copy), "--anchor", str(tiny_folder), *STEPS,
                   "--output", str(copy.with_name(f"{copy.name}_out")), "--device", "cpu", "--quiet"]  # fmt: skip
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, env=one_thread)

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(end, [copy for _, copy in copies]))
    assert len(ends) == COMMANDS
    for (name, _), done in zip(copies, ends, strict=True):
        assert done.returncode in (2, 3), (name, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 3 or done.stderr.startswith("amber: "), done.stderr
        assert len(done.stderr.strip().splitlines()) == (done.returncode == 2), done.stderr
