"""Words of YAML, and texts that a loader should fear."""

from __future__ import annotations

ODD = [
    b"\0", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J",
    b"\t",
    "é中\u202e\U0001f600".encode(), b"1e999", b"-1", b"9" * 400, b"9" * 5000, b"0x1F", b"1_000", b"1:30", b".nan",
        b"NaN",
    b"-.inf", b"2001-01-01", b"2001-99-99", b"None", b"null", b"yes", b"true", b"''", b'"', b"#",
]  # fmt: skip
YAML = [
    *ODD, b"&a ", b"*a", b"<<: *a", b"? ", b"- ", b": ", b"[", b"]", b"{", b"}", b"|", b">",
    b"!!python/object:os.system ",
    b"!!python/name:os.system ", b"!!binary ", b"!!set ", b"!!timestamp ", b"!!int ", b"!!float ", b"!!omap ",
    b"---\n",
    b"...\n", b"%YAML 9.9\n", b"\n  ", b"\n", b"[[[[", b"{a: {a: {a: ", b"Global:", b"Train:", b"mode: ", b"[1, 2]",
    b"{a: 1}",
]  # fmt: skip


def laughs(levels: int) -> str:
    """Aliases of aliases: a few lines that stand for `9 ** levels` values."""
    lines = ["a0: &a0 x"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def _merges(levels: int) -> str:
    """Merge keys of merge keys, which a loader may write out."""
    lines = ["a0: &a0 {k: 1, l: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def hostile_yaml() -> list[bytes]:
    """Attacks on a loader."""
    texts = [
        laughs(30),
        _merges(30),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a {<<: *a}",
        "[" * 400,
        "[" * 5000,
        "[" * 240 + "]" * 240,
        "a: " + "{b: " * 230 + "1" + "}" * 230,
        "a: " + "[" * 200 + "]" * 200,
        "- " * 20_000,
        "? " * 20_000,
        "a: " + "9" * 4000,
        "a: " + "9" * 100_000,
        "a" * 100_000 + ": 1",
        "".join(f"k{n}: {n}\n" for n in range(9_000)),
        "Train:\n" + "".join(f"  epochs_iter{n}: {n}\n" for n in range(4_900)),
        "Train: {" + ", ".join(f"batch_siz{n}: [1]" for n in range(3_000)) + "}",
        "a: b\n" * 200_000,
        "a: '" + "x\n\n" * 300_000 + "'",
        "# comment\n" * 1_000_000,
        "a: [" + "1, " * 300_000 + "]",
        "[" * 10 + "a," * 100_000,
        "&a " * 10_000,
        "!!python/object/apply:os.system ['true']",
        "1: 2\nnull: 3\ntrue: 4\n1.5: 5\n[a, b]: 6\n",
        "? {a: 1}\n: 2\n",
        "Global: {1: 2, null: 3}",
        "Train: {learning_rate: " + "9" * 4000 + ", epochs_iters: " + "9" * 4000 + "}",
        "Train: {learning_rate: .nan, warmup_steps: 1e308}",
        "a: !!timestamp 2001-99-99",
        "a: !!int x\nb: !!float y\nc: !!bool maybe",
        "a: !!binary " + "A" * 1001,
        "Train: {input_size: 0}",
        "Model: {patch_size: 0}",
        'Global: {output: "\\0", dataset_dir: "\\ud800"}',
    ]
    return [text.encode() for text in texts]
