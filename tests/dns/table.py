#!/usr/bin/env python3
"""Asks a DNS server the questions of table.txt and compares the replies: table.py ADDRESS[:PORT] [TOOL..]

dnspython reads each reply. Then each TOOL (dig, kdig, drill) asks the rows it can express in its own way, and what it
prints must agree. Prints a line for each row that does not hold and a summary; exits 1 when one does not.
"""

import concurrent.futures
import re
import shlex
import socket
import struct
import subprocess
import sys
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename

ZONE = "mesh.internal."
WAIT = 2.0  # seconds for a reply
SILENCE = 0.3  # seconds after which none comes
FLAGS = {"aa": 0x0400, "tc": 0x0200, "rd": 0x0100, "ra": 0x0080, "ad": 0x0020, "cd": 0x0010}
Z_BIT = 0x0040
OPCODE = 0x7800


class Broken(Exception):
    """A reply is not the expected one."""


class Row:
    """One line of the table."""

    def __init__(self, number, line, server):
        self.number, self.line = number, line
        query, reply = (part.strip() for part in line.split("=>"))
        words = query.split()
        self.tcp = "tcp" in words
        self.reply = None if reply == "drop" else reply.split()[:4]
        self.names = [word.split("=") for word in reply.split()[4:]]
        self.raw = words[0] == "bytes"
        if self.raw:
            self.wire = assemble([word for word in words[1:] if word != "tcp"])
            return
        name, self.type = words[0], words[1]
        if found := re.fullmatch(r"\{ptr:(.+)\}", name):
            name = server.reverse(found[1])
        self.name = ZONE if name == "@" else name if name.endswith(".") else f"{name}.{ZONE}"
        options = [word.partition("=")[::2] for word in words[2:]]
        self.given = dict(options)
        self.options = [text.partition(":")[::2] for key, text in options if key == "option"]
        self.wire = self.compile(number)

    def number_of(self, word, otherwise, base=10):
        return int(self.given.get(word) or str(otherwise), base)

    def compile(self, number):
        flags = 0 if "-rd" in self.given else FLAGS["rd"]
        flags |= sum(FLAGS[word] for word in ("ad", "cd") if word in self.given)
        flags |= (Z_BIT if "z" in self.given else 0) | self.number_of("opcode", 0) << 11
        edns = "edns" in self.given
        labels = self.name.rstrip(".").split(".") if self.name != "." else []
        question = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
        question += struct.pack("!HH", dns.rdatatype.from_text(self.type), self.number_of("class", 1))
        header = struct.pack("!6H", 0x4000 + number, flags, 1, 0, 0, int(edns))
        return header + question + (self.opt() if edns else b"")

    def opt(self):
        flags = self.number_of("ednsflags", 0, 16) | (0x8000 if "do" in self.given else 0)
        options = [(int(code), bytes.fromhex(data)) for code, data in self.options]
        data = b"".join(struct.pack("!HH", code, len(text)) + text for code, text in options)
        fixed = struct.pack("!BHHBBHH", 0, 41, self.number_of("edns", 1232), 0, self.number_of("version", 0), flags, len(data))
        return fixed + data

    def check(self, reply):
        """Compares a reply read by dnspython with what the row says."""
        if self.reply is None:
            if reply:
                raise Broken(f"{len(reply)} bytes came back")
            return
        if not reply:
            raise Broken("no reply")
        (asked, sent), (got, flags) = (struct.unpack("!HH", text[:4]) for text in (self.wire, reply))
        if got != asked or not flags & dns.flags.QR:
            raise Broken("another id, or no response")
        if (sent ^ flags) & OPCODE or flags & Z_BIT:
            raise Broken(f"opcode or reserved bit: flags {flags:04x}")
        # dnspython knows few opcodes. It refuses bytes behind the message.
        message = dns.message.from_wire(reply[:2] + struct.pack("!H", flags & ~OPCODE) + reply[4:])
        if struct.unpack("!H", reply[4:6])[0] and not self.echoes(reply):
            raise Broken("the question came back changed")
        edns = message.edns >= 0
        if not self.tcp and len(reply) > self.limit():
            raise Broken(f"{len(reply)} bytes, the client takes {self.limit()}")
        if edns and (message.edns, message.payload) != (0, 1232):
            raise Broken(f"OPT of version {message.edns} with {message.payload}")
        if edns and message.ednsflags & 0x7FFF:
            raise Broken("an unknown EDNS flag is set")
        soa = message.authority[0][0] if len(message.authority) == 1 else None
        if soa and soa.rdtype == dns.rdatatype.SOA and (message.authority[0].ttl, soa.minimum) != (1, 1):
            raise Broken("a negative answer that may be kept for longer than a second")
        _, _, *counts = struct.unpack("!6H", reply[:12])
        counts[3] -= int(edns)
        read = Reading(dns.rcode.to_text(message.rcode()), set(flag_words(flags)), edns, counts)
        self.compare(read)
        for word, name in self.names:
            self.check_names(message, word, dns.name.from_text(name))

    def check_names(self, message, word, name):
        """Compares names in the reply with a word behind the counts."""
        if word == "soa":
            if [found.name for found in message.authority] != [name]:
                raise Broken(f"the SOA belongs to {message.authority[0].name if message.authority else 'nobody'}")
            return
        targets = [getattr(record, "target", None) for found in message.answer for record in found]
        lying = targets + [found.name for found in message.additional]
        if word != "below" or not lying or not all(found and found.is_subdomain(name) for found in lying):
            raise Broken(f"not {word} {name}: {', '.join(map(str, lying))}")

    def echoes(self, reply):
        """Returns whether the question is a copy, byte for byte."""
        at = 12
        while self.wire[at]:
            at += 1 + self.wire[at]
        return reply[12 : at + 5] == self.wire[12 : at + 5]

    def limit(self):
        size = 0 if self.raw or "edns" not in self.given else self.number_of("edns", 1232)
        return min(max(size, 512), 1232)

    def compare(self, read):
        rcode, flags, opt, counts = self.reply
        wanted = set() if flags == "-" else set(flags.split(","))
        if (read.rcode, read.flags, read.opt) != (rcode, wanted, opt == "opt"):
            raise Broken(f"{read}")
        for count, limits in zip(read.counts, counts.split("/")):
            low, _, high = limits.partition("-")
            if not int(low) <= count <= int(high or low):
                raise Broken(f"{read}")


class Reading:
    """What a reader found in a reply."""

    def __init__(self, rcode, flags, opt, counts):
        self.rcode, self.flags, self.opt, self.counts = rcode, flags, opt, counts

    def __str__(self):
        flags = ",".join(word for word in FLAGS if word in self.flags) or "-"
        return f"{self.rcode} {flags} {'opt' if self.opt else '-'} {'/'.join(map(str, self.counts))}"


def flag_words(flags):
    return [word for word, bit in FLAGS.items() if flags & bit]


def assemble(items):
    """Makes bytes of hexadecimal digits and 'labels'."""
    parts = []
    for item in items:
        text = item.strip("'").encode()
        parts.append(bytes([len(text)]) + text if item.startswith("'") else bytes.fromhex(item))
    return b"".join(parts)


class Server:
    """The server that is asked."""

    def __init__(self, address):
        host, _, port = address.partition(":")
        self.address = (host, int(port or 53))

    def reverse(self, name):
        query = dns.message.make_query(f"{name}.{ZONE}", "A")
        answer = dns.message.from_wire(self.udp(query.to_wire(), WAIT)).answer
        return dns.reversename.from_address(answer[0][0].address).to_text()

    def ask(self, row):
        wait = SILENCE if row.reply is None else WAIT
        return self.over_tcp(row.wire, wait) if row.tcp else self.udp(row.wire, wait)

    def udp(self, wire, wait):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(wait)
            client.connect(self.address)
            client.send(wire)
            try:
                return client.recv(65535)
            except TimeoutError:
                return b""

    def over_tcp(self, wire, wait):
        with socket.create_connection(self.address, timeout=wait) as client:
            client.sendall(struct.pack("!H", len(wire)) + wire)
            stream = client.makefile("rb")
            try:
                return stream.read(struct.unpack("!H", stream.read(2))[0])
            except (TimeoutError, struct.error):
                return b""


def dig(row, server):
    given = row.given
    if row.type in ("AXFR", "TYPE251"):
        return None
    words = ["dig", f"@{server.address[0]}", "-p", str(server.address[1]), "+tries=1", "+time=2", "+nobadcookie"]
    words += ["+ignore", "+noednsnegotiation", "+nocookie", "+noaaflag", "+tcp" if row.tcp else "+notcp"]
    words += ["+norecurse" if "-rd" in given else "+recurse", "+adflag" if "ad" in given else "+noadflag"]
    words += ["+cdflag" if "cd" in given else "+nocdflag", "+zflag" if "z" in given else "+nozflag"]
    words += [f"+opcode={given['opcode']}"] if "opcode" in given else []
    words += ["-c", f"CLASS{given.get('class', 1)}"]
    if "edns" in given:
        words += [f"+bufsize={row.number_of('edns', 1232)}", f"+edns={row.number_of('version', 0)}"]
        words += ["+dnssec"] if "do" in given else []
        words += [f"+ednsflags=0x{given['ednsflags']}"] if "ednsflags" in given else []
        words += [f"+ednsopt={code}:{data}" if data else f"+ednsopt={code}" for code, data in row.options]
    else:
        words += ["+noedns"]
    return words + ["-t", row.type, "-q", row.name]


def kdig(row, server):
    given = row.given
    if {"opcode", "ednsflags"} & set(given) or row.type in ("AXFR", "TYPE251") or given.get("edns") == "0":
        return None
    words = ["kdig", f"@{server.address[0]}", "-p", str(server.address[1]), "+retry=0", "+time=2", "+ignore"]
    words += ["+tcp" if row.tcp else "+notcp", "+nordflag" if "-rd" in given else "+rdflag"]
    words += [f"+{word}flag" for word in ("ad", "cd", "z") if word in given]
    words += ["-c", {"3": "CH", "255": "ANY"}.get(given.get("class"), "IN")]
    if "edns" in given:
        words += [f"+edns={row.number_of('version', 0)}", f"+bufsize={row.number_of('edns', 1232)}"]
        words += ["+dnssec"] if "do" in given else []
        words += [f"+ednsopt={code}:{data}" if data else f"+ednsopt={code}" for code, data in row.options]
    return words + ["-t", row.type, "-q", row.name]


def drill(row, server):
    given = row.given
    if {"opcode", "z", "ad", "version", "ednsflags", "option", "class", "do"} & set(given):
        return None
    if row.type in ("AXFR", "TYPE251") or row.type.startswith("TYPE") or given.get("edns") == "0":
        return None
    words = ["drill", "-p", str(server.address[1])] + (["-t"] if row.tcp else ["-u"])
    words += ["-o", "rd"] if "-rd" in given else []
    words += ["-o", "CD"] if "cd" in given else []
    words += ["-b", str(row.number_of("edns", 1232))] if "edns" in given else []
    return words + [row.name, f"@{server.address[0]}", row.type]


def read_tool(tool, text):
    """Reads what dig, kdig and drill print alike."""
    status = re.search(r"(?:status|rcode): (\w+)", text)
    line = re.search(r"[Ff]lags:([a-z ]*); QUERY: (\d+)[,;] ANSWER: (\d+)[,;] AUTHORITY: (\d+)[,;] ADDITIONAL: (\d+)", text)
    if not status or not line:
        raise Broken(f"it prints no reply: {' '.join(text.split())[:200]}")
    opt = bool(re.search(r"(EDNS PSEUDOSECTION|OPT PSEUDOSECTION|;; EDNS: version)", text))
    counts = [int(count) for count in line.groups()[1:]]
    counts[3] -= int(opt and tool != "drill")  # which does not count it
    return Reading(status[1], set(line[1].split()) - {"qr"}, opt, counts)


TOOLS = {"dig": dig, "kdig": kdig, "drill": drill}


def cross_read(tool, row, server):
    """Returns whether the tool can express the row; raises when it reads something else."""
    command = None if row.raw else TOOLS[tool](row, server)
    if command is None:
        return False
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    try:
        row.compare(read_tool(tool, done.stdout))
    except Broken as error:
        raise Broken(f"{tool}: {error} ({shlex.join(command)})") from error
    return True


def main():
    address, *tools = sys.argv[1:]
    server = Server(address)
    lines = Path(__file__).with_name("table.txt").read_text(encoding="utf-8").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    rows = [Row(number, line, server) for number, line in numbered]
    failed, read = 0, dict.fromkeys(tools, 0)

    def hold(row, check):
        try:
            return check()
        except (Broken, dns.exception.DNSException, OSError) as error:
            print(f"line {row.number}: {' '.join(row.line.split())}\n    {type(error).__name__}: {error}")
            nonlocal failed
            failed += 1
            return False

    for row in rows:
        hold(row, lambda row=row: row.check(server.ask(row)))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for tool in tools:
            checks = [(row, pool.submit(cross_read, tool, row, server)) for row in rows]
            read[tool] = sum(bool(hold(row, check.result)) for row, check in checks)
    again = ", ".join(f"{count} by {tool}" for tool, count in read.items())
    print(f"{len(rows)} rows, {failed} failed; read again: {again or 'by nobody'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
