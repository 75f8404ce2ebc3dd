"""Records the TCP segments that pass an interface, as any host on the way would see them.

    segments.py INTERFACE               records
    segments.py INTERFACE segmented     the same; the kernel is told before to cut packets into
                                        segments itself, as a card without offloads makes it

Prints a line of JSON when it records. Then, for each line of input, a line of JSON: a list of the
segments since the last time, each with its ports, sequence number, flags, the options that are not
of the usual kinds (kind and content, hexadecimal), the sum of all options' bytes, the bytes of its
payload and the first of them.
"""

import array
import fcntl
import json
import select
import socket
import struct
import sys

ETH_P_ALL = 0x0003
SIOCETHTOOL = 0x8946
# ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO of include/uapi/linux/ethtool.h.
OFFLOADS = (0x1F, 0x24, 0x2C)
# End, no operation, MSS, window scale, SACK permitted, SACK, timestamps.
USUAL = {0, 1, 2, 3, 4, 5, 8}


def cut_into_segments(interface):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for command in OFFLOADS:
            value = array.array("I", [command, 0])
            request = struct.pack("16sP", interface.encode(), value.buffer_info()[0])
            fcntl.ioctl(asking, SIOCETHTOOL, request)


def options(header):
    place, unusual = 20, []
    while place < len(header):
        kind = header[place]
        if kind < 2:
            place += 1
            continue
        length = header[place + 1]
        assert length >= 2, header.hex()
        if kind not in USUAL:
            unusual.append([kind, header[place + 2 : place + length].hex()])
        place += length
    return unusual


def segment(frame):
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return None
    ip = frame[14:]
    length = struct.unpack("!H", ip[2:4])[0]
    tcp = ip[(ip[0] & 0x0F) * 4 : length or None]
    source, target, sequence = struct.unpack("!HHI", tcp[:8])
    offset = (tcp[12] >> 4) * 4
    return {
        "source": source,
        "target": target,
        "sequence": sequence,
        "flags": tcp[13],
        "options": options(tcp[:offset]),
        "option_bytes": offset - 20,
        "length": len(tcp) - offset,
        "begin": tcp[offset : offset + 24].decode("latin-1"),
    }


interface = sys.argv[1]
if "segmented" in sys.argv[2:]:
    cut_into_segments(interface)
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
tap.bind((interface, 0))
print(json.dumps({"recording": interface}), flush=True)
seen = []
while True:
    ready, _, _ = select.select([tap, sys.stdin], [], [])
    if tap in ready:
        found = segment(tap.recv(1 << 17))
        seen.extend([found] if found else [])
    elif not sys.stdin.readline():
        break
    else:
        print(json.dumps(seen), flush=True)
        seen = []
