#!/usr/bin/env python3
"""Writes the golden files beside it with libsodium itself: python3 make.py (needs libsodium.so.23, Debian's libsodium23)."""
import ctypes, hashlib, json, os

lib = ctypes.CDLL("libsodium.so.23")
lib.sodium_init()
lib.sodium_version_string.restype = ctypes.c_char_p
push = lib.crypto_secretstream_xchacha20poly1305_push
push.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_ubyte]


def text(n):
    return bytes((i * i // 7 + i) & 255 for i in range(n))


def encrypt(key, plain, chunk=8192):
    state, header = ctypes.create_string_buffer(lib.crypto_secretstream_xchacha20poly1305_statebytes()), ctypes.create_string_buffer(24)
    lib.crypto_secretstream_xchacha20poly1305_init_push(state, header, key)
    out = header.raw
    for at in range(0, len(plain) + 1, chunk):
        part = plain[at:at + chunk]
        c = ctypes.create_string_buffer(len(part) + 17)
        push(state, c, None, part, len(part), None, 0, 3 if len(part) < chunk else 0)
        out += c.raw
    return out


here = os.path.dirname(os.path.abspath(__file__))
key = bytes(range(1, 33))
streams = []
for n in list(range(0, 34)) + [63, 64, 65, 100, 4095, 8184, 8190, 8191, 8192, 8193, 8199, 16383, 16384, 16385, 65535, 65536, 65537, 200001]:
    c = encrypt(key, text(n))
    streams.append({"size": n, "header": c[:24].hex(), "sha256": hashlib.sha256(c).hexdigest()})
with open(os.path.join(here, "golden.json"), "w") as f:
    f.write('{"libsodium": "%s", "key": "%s", "streams": [\n' % (lib.sodium_version_string().decode(), key.hex()))
    f.write(",\n".join(json.dumps(s) for s in streams) + "\n]}\n")
with open(os.path.join(here, "20001.bin"), "wb") as f:
    f.write(encrypt(key, text(20001)))
