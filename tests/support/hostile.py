"""Weight files that were made to do harm: what each holds, and what its refusal must say."""

from __future__ import annotations

import functools
import importlib
import operator
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

DAMAGED = "damaged or of another format"
HEAD, RECONSTRUCT = b"\x80\x02", b"cnumpy.core.multiarray\n_reconstruct\n"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *words: Any):
        self._call = function, words

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def touching(marker: Path) -> dict[str, Any]:
    """State dicts that would make the file `marker` if loaded without care, by what may be refused."""
    touch = f"touch {marker}"
    with_attribute = OrderedDict(w=1)
    vars(with_attribute)["note"] = Call(os.system, touch)
    return {
        "posix.system": {"w": Call(os.system, touch)},
        r"\w*builtin\w*.eval": {"w": Call(eval, f"__import__('os').system({touch!r})")},
        r"\w*builtin\w*.exec": {"w": Call(exec, f"open({str(marker)!r}, 'w')")},
        "(subprocess|commands).Popen": {"w": Call(subprocess.Popen, ["touch", str(marker)])},
        "functools.partial": {"w": Call(functools.partial, os.system, touch)},
        "operator.attrgetter": {"w": operator.attrgetter},
        "importlib.import_module": {"w": Call(importlib.import_module, "os")},
        r"\w*builtin\w*.getattr": {"w": getattr},
        "numpy.memmap": {"w": Call(np.memmap, str(marker), "f4", "w+", 0, (4,))},
        "numpy.fromfile": {"w": Call(np.fromfile, "/etc/passwd")},
        r"posix.system|numpy.dtype\('O8'\)": {"w": np.array([Call(os.system, touch)], object)},
        "posix.system|a state of dict": with_attribute,
    }


def numpys() -> dict[str, tuple[bytes, str]]:
    """What NumPy's own pickles can be bent to."""
    scalar = np.float32(0).__reduce__()[0]
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R"
    return {
        "objects": (pickle.dumps({"w": np.array([1, "a"], object)}), r"numpy\.dtype\('O"),
        "a scalar of objects": (pickle.dumps({"w": Call(scalar, np.dtype("O"), b"12345678")}), r"numpy\.dtype\('O"),
        "fields": (pickle.dumps({"w": np.zeros(2, [("a", "f4"), ("b", "f4")])}), r"numpy\.dtype\('V8'\)"),
        "a date": (pickle.dumps({"w": np.zeros(2, "M8[s]")}), r"numpy\.dtype\('M8"),
        "a dtype's state with fields": (
            HEAD + dtype + b"(K\x03X\x01\x00\x00\x00<N}X\x01\x00\x00\x00aNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
            "a numpy.dtype with fields",
        ),
        "a class of arrays": (pickle.dumps({"w": np.zeros(2).view(np.recarray)}), r"numpy[\w.]*\.recarray"),
        "a state of a name": (HEAD + b"cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "a state of"),
        "a state of a dictionary": (HEAD + b"}}X\x05\x00\x00\x00itemsK\x01sb.", "a state of dict"),
        "a name as a value": (pickle.dumps({"w": np.ndarray}), "as a value"),
        "a call of a text": (HEAD + b"X\x01\x00\x00\x00a)R.", "something other than a name"),
        "another encoding": (HEAD + b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "encode with"),
        "decode": (HEAD + b"c_codecs\ndecode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", r"_codecs\.decode"),
        "an array without content": (HEAD + RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85\x87R.", DAMAGED),
        "a short array": (pickle.dumps({"w": Call(np.ndarray, (4,), "<f4", b"123")}), DAMAGED),
        "a negative shape": (pickle.dumps({"w": Call(np.ndarray, (-2, -2), "<f4", bytes(16))}), DAMAGED),
        "strides": (pickle.dumps({"w": Call(np.ndarray, (9,), "<f4", bytes(4), 0, (0,))}), DAMAGED),
        "an instruction of protocol 0": (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
        "a persistent name": (b"\x80\x02X\x01\x00\x00\x00aQ.", DAMAGED),
        "a new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", DAMAGED),
        "an extension": (HEAD + b"\x82\x01.", DAMAGED),
        "a set": (pickle.dumps({"w": {1, 2}}), DAMAGED),
        "a name that is no text": (pickle.dumps({(1, 2): 3}), DAMAGED),
        "a number without end": (pickle.dumps({"w": 10**5000}), DAMAGED),
    }


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that ask for much memory, or for ever."""
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6
    doubled = b"]q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(40))
    numbers = b"(" + (b"\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000) * 1000 + b"t"
    return {
        "an array of 4 TB": (pickle.dumps({"w": Call(np.ndarray, (10**12,), "<f4")}), DAMAGED),
        "an array of 4 TB with a state": (
            pickle.dumps({"w": Call(np.zeros(0).__reduce__()[0], np.ndarray, (10**12,), b"b")}),
            DAMAGED,
        ),
        "a dimension without end": (
            HEAD + b"cnumpy\nndarray\n(" + numbers + b"X\x03\x00\x00\x00<f4" + b"B\x00\x00\x00\x00tR.",
            DAMAGED,
        ),
        "four thousand million memo slots": (b"\x80\x04]r\xff\xff\xff\xff.", "holds a list"),
        "bytes of 1 TB": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.", DAMAGED),
        "a frame of 1 TB": (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.", DAMAGED),
        "a number of 1 GB": (b"\x80\x04\x8b" + struct.pack("<i", 2**30) + b"\x01.", DAMAGED),
        "one text as bytes 10,000 times": (
            HEAD
            + b"c_codecs\nencode\nq\x00"
            + text
            + b"q\x01X\x06\x00\x00\x00latin1q\x02]("
            + b"h\x00h\x01h\x02\x86R" * 10000
            + b"e.",
            DAMAGED,
        ),
        "a tuple of a list, again and again": (
            HEAD + b"cbuiltins\ntuple\nq\x00](" + b"K\x01" * 10**5 + b"eq\x01(" + b"h\x00h\x01\x85R" * 10**5 + b"t.",
            r"builtins\.tuple of another",
        ),
        "pairs of pairs, forty times": (HEAD + doubled + b"}X\x01\x00\x00\x00wh(s.", "without end"),
        "a thousand times a thousand times a thousand": (
            HEAD
            + b"".join(b"](" + item * 1000 + b"eq" + n for item, n in ((b"N", b"0"), (b"h0", b"1"), (b"h1", b"2")))
            + b"}X\x01\x00\x00\x00wh2s.",
            "without end",
        ),
        "a list in itself": (HEAD + b"}X\x01\x00\x00\x00w]q\x00h\x00as.", "without end"),
        "lists 100,000 deep": (HEAD + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "without end"),
        "ten million dictionaries": (HEAD + b"}" * 10**7 + b".", "millions of values"),
        "ten million marks": (HEAD + b"(" * 10**7 + b".", "millions of values"),
    }
