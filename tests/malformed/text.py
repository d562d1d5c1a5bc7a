"""Text files: Criteo, Avazu, MovieLens, pairs and CSV, plain and gzip."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.malformed.corpus import Build, Case

AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
MIB = 1 << 20


@dataclass(frozen=True)
class Reader:
    """A reader of text and a small file that it takes."""

    name: str
    file: str
    lines: tuple[str, ...]
    """The lines of a good file, the header included."""
    delimiter: str
    header: bool
    options: tuple[str, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    """Other files of the folder, which is then what is read."""
    label: int | None = None
    """Position of the column; None: the data has none."""
    number: int | None = None
    time: int | None = None
    user: int | None = None
    binary: bool = True

    def write(self, folder: Path, data: bytes) -> list[str]:
        """Writes the file with these bytes; returns the command."""
        (folder / self.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(data)
        return self.command(folder)

    def command(self, folder: Path) -> list[str]:
        """The command that prepares the file, whatever it is by now."""
        for name, content in self.beside:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        source = (folder / self.file).parent if self.beside else folder / self.file
        return ["prepare", str(source), str(folder / "out"), *self.options]

    @property
    def good(self) -> bytes:
        """The bytes of a good file."""
        return "".join(line + "\n" for line in self.lines).encode()

    def changed(self, column: int, value: str, row: int = 3) -> bytes:
        """A good file but for one field."""
        lines = list(self.lines)
        fields = lines[row].split(self.delimiter)
        fields[column] = value
        lines[row] = self.delimiter.join(fields)
        return "".join(line + "\n" for line in lines).encode()


def _criteo() -> tuple[str, ...]:
    return tuple(
        "\t".join([str(i % 2), *(str(i + k) for k in range(13)), *(f"{k + i % 3:08x}" for k in range(26))])
        for i in range(8)
    )


def _avazu() -> tuple[str, ...]:
    rows = (f"{i},{i % 2},1410210{i},1005,0,s{i},d,c,a,b,e,f,g,h,1,0,17747,320,50,1974,2,39,-1,33" for i in range(8))
    return (AVAZU, *rows)


READERS = (
    Reader("criteo", "day_0", _criteo(), "\t", False, ("--format", "criteo"), label=0, number=3),
    Reader("avazu", "avazu.csv", _avazu(), ",", True, ("--format", "avazu"), label=1, time=2),
    Reader(
        "movielens",
        "ml/ratings.dat",
        tuple(f"{1 + i % 3}::{10 + i % 4}::{1 + i % 5}::{978300760 + i}" for i in range(8)),
        "::",
        False,
        beside=(("ml/movies.dat", "10::A (2001)::Comedy\n11::B (2002)::Drama|War\n"),),
        label=2,
        time=3,
        user=0,
        binary=False,
    ),
    Reader("pairs", "pairs.csv", ("user,item", *(f"{i % 3},{i % 4}" for i in range(8))), ",", True, user=0),
    Reader(
        "csv",
        "table.csv",
        ("label,time,user,item,price", *(f"{i % 2},{1600000000 + i},u{i % 3},i{i % 4},{i}.5" for i in range(8))),
        ",",
        True,
        label=0,
        number=4,
        time=1,
        binary=False,
    ),
)


def cases() -> Iterator[Case]:
    """Every damage for every reader that it can befall."""
    for reader in READERS:
        for name, build in _damages(reader):
            yield Case(f"{reader.name}/{name}", build, ("out",) if name == "out is a file" else (_place(reader),))
        for name, build in _fields(reader):
            yield Case(f"{reader.name}/{name}", build, (_place(reader),))
    yield from _csv_only()
    yield from _movies()
    yield from _arguments()


def _place(reader: Reader) -> str:
    return Path(reader.file).parts[0]


def _damages(reader: Reader) -> Iterator[tuple[str, Build]]:
    good, write = reader.good, reader.write

    def whole(name: str, data: bytes) -> tuple[str, Build]:
        return name, lambda folder: write(folder, data)

    last = reader.lines[-1]
    cut = good[: len(good) - len(last) + last.index(reader.delimiter) - 1]
    packed = gzip.compress(good * 400, mtime=0)
    yield whole("empty", b"")
    yield whole("only a byte-order mark", b"\xef\xbb\xbf")
    yield whole("only line breaks", b"\n" * 50)
    yield whole("only spaces", b"   \n  \n")
    yield whole("only carriage returns", b"\r\r\r\r")
    yield whole("invalid UTF-8 in a row", good + b"\xff\xfe\xfd\n")
    yield whole("NUL byte in a row", good[:-2] + b"\0" + good[-2:])
    yield whole("only NUL bytes", bytes(5000))
    yield whole("UTF-16", good.decode().encode("utf-16"))
    yield whole("UTF-32", good.decode().encode("utf-32"))
    yield whole("a field too many", good + f"{last}{reader.delimiter}9\n".encode())
    yield whole("a field too few", good + last.rpartition(reader.delimiter)[0].encode() + b"\n")
    yield whole("last line cut", cut)
    if reader.name != "pairs":  # read by Arrow, which passes over blank lines
        yield whole("blank line in the middle", good + b"\n" + last.encode() + b"\n")
    yield whole("wrong delimiter", good.replace(reader.delimiter.encode(), b";"))
    yield whole("a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 8)
    yield whole("a program", b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 8)
    yield whole("a zip archive", b"PK\x03\x04" + bytes(range(256)) * 4)
    yield whole("xz under a text's name", b"\xfd7zXZ\0" + bytes(range(256)) * 4)
    yield whole("zstd under a text's name", b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 4)
    yield whole("HTML", b"<!doctype html><html><body>404 Not Found</body></html>\n")
    yield whole("JSON", b'{"label": 1, "user": "a"}\n{"label": 0, "user": "b"}\n')
    yield whole("gzip cut", packed[:-20])
    yield whole("gzip of one byte's header", packed[:11])
    yield whole("gzip with a wrong checksum", packed[:-8] + b"\0\0\0\0" + packed[-4:])
    yield whole("gzip with damage inside", packed[:40] + b"\xff" * 40 + packed[80:])
    yield whole("gzip magic alone", b"\x1f\x8b")
    yield whole("gzip of nothing", gzip.compress(b"", mtime=0))
    yield whole("gzip twice", gzip.compress(packed, mtime=0))
    yield "missing", reader.command
    yield "a folder in its place", lambda folder: _made(reader, folder, lambda path: path.mkdir(parents=True))
    yield "a pipe", lambda folder: _made(reader, folder, os.mkfifo)
    yield "a link in a circle", lambda folder: _made(reader, folder, lambda path: path.symlink_to(path.name))
    yield "a dangling link", lambda folder: _made(reader, folder, lambda path: path.symlink_to("nowhere"))
    yield "out is a file", lambda folder: _out_is_a_file(reader, folder)


def _made(reader: Reader, folder: Path, make: Callable[[Path], object]) -> list[str]:
    command = reader.command(folder)
    (folder / reader.file).parent.mkdir(parents=True, exist_ok=True)
    make(folder / reader.file)
    return command


def _out_is_a_file(reader: Reader, folder: Path) -> list[str]:
    command = reader.write(folder, reader.good)
    (folder / "out").write_text("mine")
    return command


def _fields(reader: Reader) -> Iterator[tuple[str, Build]]:
    def field(name: str, column: int, value: str) -> tuple[str, Build]:
        return name, lambda folder: reader.write(folder, reader.changed(column, value))

    if reader.label is not None:
        for value in ("", "maybe", "nan", "inf", "1e999", "0x1", "1_0", "--1", "½"):
            yield field(f"label {value!r}", reader.label, value)
        if reader.binary:
            for value in ("2", "-1", "0.5", "1e30"):
                yield field(f"label {value!r}", reader.label, value)
        yield (
            field("label beyond float32", reader.label, "1e300")
            if not reader.binary
            else field("label of 5000 digits", reader.label, "1" * 5000)
        )
    if reader.number is not None:
        # A CSV file without a schema: a text among numbers makes the column one of categories.
        for value in ("-inf", "1e999", "1e300", "1" * 5000, *(() if reader.header else ("x", "nan", "1,5"))):
            yield field(f"number {value[:12]!r}", reader.number, value)
    if reader.time is not None:
        for value in ("", "yesterday", "nan", "1e300", "-1e300", "9" * 30, "2020-13-45", "1e21"):
            yield field(f"time {value[:12]!r}", reader.time, value)
    if reader.user is not None:
        yield field("negative user", reader.user, "-7")
        yield field("very negative user", reader.user, "-" + "9" * 40)


def _csv_only() -> Iterator[Case]:
    csv = READERS[-1]

    def case(name: str, data: bytes | Callable[[], bytes], *says: str) -> Case:
        def build(folder: Path) -> list[str]:
            return csv.write(folder, data if isinstance(data, bytes) else data())

        return Case(f"csv/{name}", build, ("table.csv", *says))

    head, rows = csv.lines[0], "".join(line + "\n" for line in csv.lines[1:])
    yield case("header alone", head.encode() + b"\n", "no usable row")
    yield case("header without line break", head.encode())
    yield case("label and time alone", b"label,time\n1,1600000000\n0,1600000001\n", "no feature", "'label', 'time'")
    yield case("the same column twice", f"{head},user\n{rows.replace(chr(10), ',x' + chr(10))}".encode(), "user")
    yield case("a column without a name", f"{head},\n{rows.replace(chr(10), ',x' + chr(10))}".encode())
    yield case("no label", (head.replace("label", "thing") + "\n" + rows).encode(), "label")
    yield case("two labels", (head.replace("item", "click") + "\n" + rows).encode(), "label")
    yield case("a million columns", lambda: b",".join(b"c%d" % i for i in range(10**6)) + b"\n", "columns")
    yield case("a header that never ends", lambda: b"c" * (70 * MIB), "too long")
    yield case("a row that never ends", lambda: csv.good + b"1," * (35 * MIB), "too long")
    yield case("a quoted header that never ends", lambda: b'label,"' + b"x" * 300_000 + b"\n")
    yield case("a quote that is not closed", csv.good.replace(b"u1", b'"u1', 1))
    yield case("a quote that spans lines", csv.good.replace(b"u1", b'"u\n1"', 1))
    yield case("all columns have a role twice", b"label,time,date,user\n1,2,3,4\n", "time")
    yield case("gzip bomb of NUL bytes", lambda: _bomb(b"\0", 128 * MIB))
    yield case("gzip bomb of lines", lambda: _bomb(csv.good.splitlines()[1] + b"\n", 128 * MIB, csv.lines[0].encode()))
    yield case("gzip bomb of line breaks", lambda: _bomb(b"\n", 128 * MIB, csv.lines[0].encode()))
    yield case("a million empty lines", lambda: csv.good + b"\n" * 10**6)
    yield case("a million bad lines", lambda: csv.good + b"\xff\n" * 10**6)
    yield Case("pairs/gzip bomb", partial(_packed_pairs, b"1,2\n", 128 * MIB), ("pairs.csv.gz",))
    yield Case("pairs/split is 7", _pairs_split, ("pairs.csv", "split"))
    pairs = next(reader for reader in READERS if reader.name == "pairs")
    for name, header in {
        # Found by fuzzing: for Arrow the name goes on to the next quote, over bytes that are no text.
        "a name over two lines": b'"user,item\n\x80,0\n1,1\n"0,2\n',
        "a name that is not UTF-8": b"user,item,\x80\n1,2,3\n",
        "a name that is not UTF-8 after an empty line": b"\nuser,item,\x80\n1,2,3\n",
    }.items():
        write = partial(_pairs_header, pairs, header)
        yield Case(f"pairs/{name}", write, ("pairs.csv:1: ",))


def _bomb(piece: bytes, size: int, header: bytes = b"") -> bytes:
    """Gzip that unpacks to ``size`` bytes."""
    packer = zlib.compressobj(9, wbits=31)
    block = piece * (MIB // len(piece))
    parts = [packer.compress(header + b"\n")] if header else []
    parts += [packer.compress(block) for _ in range(size // len(block))]
    return b"".join([*parts, packer.flush()])


def _packed_pairs(piece: bytes, size: int, folder: Path) -> list[str]:
    (folder / "pairs.csv.gz").write_bytes(_bomb(piece, size, b"user,item"))
    return ["prepare", str(folder / "pairs.csv.gz"), str(folder / "out")]


def _pairs_split(folder: Path) -> list[str]:
    (folder / "pairs.csv").write_text("user,item,split\n1,2,0\n1,3,7\n")
    return ["prepare", str(folder / "pairs.csv"), str(folder / "out")]


def _pairs_header(pairs: Reader, data: bytes, folder: Path) -> list[str]:
    return [*pairs.write(folder, data), "--format", "pairs"]


def _movies() -> Iterator[Case]:
    reader = READERS[2]

    def case(name: str, data: bytes | None, *says: str) -> Case:
        def build(folder: Path) -> list[str]:
            command = reader.write(folder, reader.good)
            (folder / "ml/movies.dat").unlink()
            if data is not None:
                (folder / "ml/movies.dat").write_bytes(data)
            return command

        return Case(f"movies/{name}", build, ("movies.dat", *says))

    yield case("missing", None)
    yield case("empty", b"", "empty")
    yield case("two fields", b"10::A (2001)\n", "movies.dat:1")
    yield case("a film twice", b"10::A (2001)::x\n11::C::x\n10::B (2002)::x\n", "movies.dat:3")
    yield case("blank line", b"10::A (2001)::x\n\n", "movies.dat:2")
    yield case("NUL bytes", bytes(100))
    yield case("gzip cut", gzip.compress(b"10::A (2001)::x\n" * 100, mtime=0)[:-12])
    yield case("a line that never ends", b"1::" * (24 * MIB))


def _arguments() -> Iterator[Case]:
    csv = READERS[-1]

    def case(name: str, *options: str, says: tuple[str, ...] = ()) -> Case:
        return Case(f"prepare/{name}", lambda folder: [*csv.write(folder, csv.good), *options], says)

    yield case("unknown format", "--format", "excel", says=("excel",))
    yield case("format of other data", "--format", "criteo", says=("table.csv",))
    yield case("format avazu of other data", "--format", "avazu", says=("table.csv",))
    yield case("format movielens of other data", "--format", "movielens")
    yield case("format globo of other data", "--format", "globo", says=("table.csv",))
    yield case("format parquet of other data", "--format", "parquet", says=("table.csv",))
    yield case("negative frequency", "--min-frequency", "-1", says=("min_frequency",))
    yield case("huge frequency", "--min-frequency", "9" * 30, says=("min_frequency",))
    yield case("one hash row", "--hash-rows", "1", says=("hash_rows",))
    yield case("too many hash rows", "--hash-rows", str(2**31), says=("hash_rows",))
    yield case("negatives for labelled data", "--negatives", "2", says=("negatives",))
    yield case("unknown bad-row choice", "--on-bad-row", "shrug", says=("on_bad_row",))
    yield case("threshold that is nan", "--label-threshold", "nan", says=("label_threshold",))
    yield case("unknown option", "--set", "colour=red", says=("colour",))
    yield case("no number", "--min-frequency", "many", says=("--min-frequency",))
    yield Case("prepare/endless device", lambda folder: ["prepare", "/dev/zero", str(folder / "out")], ("/dev/zero",))
    yield Case("prepare/empty folder", _empty_folder, ("nothing",))
    yield Case("prepare/name too long", lambda folder: ["prepare", "x" * 5000, str(folder / "out")])
    yield Case("prepare/no arguments", lambda folder: ["prepare"], ("source",))
    yield Case("prepare/unknown flag", lambda folder: ["prepare", "a", "b", "--fromat", "csv"], ("--fromat",))
    yield Case("no such command", lambda folder: ["prepar", "a", "b"], ("prepar",))


def _empty_folder(folder: Path) -> list[str]:
    (folder / "nothing").mkdir()
    return ["prepare", str(folder / "nothing"), str(folder / "out")]
