"""secretstream.py KEYFILE: decrypts libsodium's secretstream on standard input, in pieces of 8192 bytes, with libsodium itself. The key is
hex. Ends with status 1 when a piece is not authentic or the last one is not marked as the last."""
import ctypes
import sys

sodium = ctypes.CDLL("libsodium.so.23")
if sodium.sodium_init() < 0:
    sys.exit("libsodium does not start")
with open(sys.argv[1]) as f:
    key = bytes.fromhex(f.read().strip())
state = ctypes.create_string_buffer(sodium.crypto_secretstream_xchacha20poly1305_statebytes())
header = sys.stdin.buffer.read(sodium.crypto_secretstream_xchacha20poly1305_headerbytes())
if sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key) != 0:
    sys.exit("the header is none")
more = sodium.crypto_secretstream_xchacha20poly1305_abytes()
out = ctypes.create_string_buffer(8192)
tag = ctypes.c_ubyte(0)
while True:
    piece = sys.stdin.buffer.read(8192 + more)
    if not piece:
        break
    if tag.value == sodium.crypto_secretstream_xchacha20poly1305_tag_final():
        sys.exit("bytes behind the last piece")
    if sodium.crypto_secretstream_xchacha20poly1305_pull(
            state, out, None, ctypes.byref(tag), piece, ctypes.c_ulonglong(len(piece)), None, ctypes.c_ulonglong(0)) != 0:
        sys.exit("a piece is not authentic")
    sys.stdout.buffer.write(out.raw[:len(piece) - more])
if tag.value != sodium.crypto_secretstream_xchacha20poly1305_tag_final():
    sys.exit("the end is missing")
