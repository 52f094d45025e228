"""Makes the tiny bundles of the tests, `identity/` and `makeup/`, with the tensors and kinds of layer of the real ones: a stand-in where
those are not needed, quick and of known behaviour. Needs nothing but Python: `python3 tests/data/bundles/make.py`.

`makeup`: `applied` is a third of the blurred difference between reference and face, `bare` takes an eighth of the face's own blurred redness
(red above green) off its red. `identity`: pseudo-random filters, their mean activations, mixed; `change` is a third of the blurred
difference between the person and the other face, and a little of the embedding. Its avatars are two patterns."""

import hashlib
import random
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).parent
U8, S8, FLOAT, INT64 = 2, 3, 1, 7


# --- protocol buffers, as far as ONNX needs them ---


def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while True:
        out.append(n & 0x7F | (0x80 if n > 0x7F else 0))
        n >>= 7
        if not n:
            return bytes(out)


def number(field, n):
    return varint(field << 3) + varint(n)


def block(field, data):
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


class Graph:
    """An ONNX graph, opset 17, being written."""

    def __init__(self):
        self.nodes, self.tensors, self.ends, self.names = [], [], [], set()

    def tensor(self, name, kind, dims, raw):
        if name not in self.names:
            self.names.add(name)
            head = b"".join(number(1, d) for d in dims) + number(2, kind)
            self.tensors.append(head + block(8, name) + block(9, raw))
        return name

    def floats(self, name, dims, values):
        return self.tensor(name, FLOAT, dims, struct.pack(f"<{len(values)}f", *values))

    def node(self, op, inputs, out, **attributes):
        body = b"".join(block(1, i) for i in inputs) + block(2, out) + block(3, out) + block(4, op)
        for key, value in attributes.items():
            if isinstance(value, str):
                attribute = block(4, value) + number(20, 3)
            elif isinstance(value, int):
                attribute = number(3, value) + number(20, 2)
            else:
                attribute = b"".join(number(8, v) for v in value) + number(20, 7)
            body += block(5, block(1, key) + attribute)
        self.nodes.append(body)
        return out

    def pair(self, x, scale, zero):
        s, z = self.floats(f"{x}.scale", [], [scale]), self.tensor(f"{x}.zero", U8, [], bytes([zero]))
        q = self.node("QuantizeLinear", [x, s, z], f"{x}.q")
        return self.node("DequantizeLinear", [q, s, z], f"{x}.dq")

    def weights(self, name, dims, values):
        """Per output channel, symmetric; `values` are output by output."""
        each = len(values) // dims[0]
        rows = [values[i * each : (i + 1) * each] for i in range(dims[0])]
        scales = [max(map(abs, row)) / 127 or 1.0 for row in rows]
        integers = [round(v / s) for row, s in zip(rows, scales) for v in row]
        w = self.tensor(f"{name}.int8", S8, dims, struct.pack(f"<{len(integers)}b", *integers))
        s = self.floats(f"{name}.scale", [dims[0]], scales)
        z = self.tensor(f"{name}.zero", S8, [dims[0]], bytes(dims[0]))
        return self.node("DequantizeLinear", [w, s, z], name, axis=0)

    def conv(self, x, out, dims, values, stride=1, pads=None):
        pads = pads if pads is not None else [dims[2] // 2] * 4
        w = self.weights(f"{out}.w", dims, values)
        return self.node("Conv", [x, w], out, strides=[stride] * 2, pads=pads, kernel_shape=dims[2:])

    def twice(self, x, out):
        scales = self.floats("twice", [4], [1.0, 1.0, 2.0, 2.0])
        modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return self.node("Resize", [x, "", scales], out, **modes)

    def end(self, field, name, dims):
        shape = b"".join(block(1, number(1, d)) for d in dims)
        kind = block(1, number(1, FLOAT) + block(2, shape))
        self.ends.append(block(field, block(1, name) + block(2, kind)))

    def model(self):
        graph = b"".join(block(1, n) for n in self.nodes) + block(2, "test")
        graph += b"".join(block(5, t) for t in self.tensors) + b"".join(self.ends)
        return number(1, 8) + block(7, graph) + block(8, number(2, 17))


# --- the two networks ---


def smooth(cin, mix):
    """A 3x3 mean of each output's mix of the inputs."""
    return [v for row in mix for c in range(cin) for v in [row[c] / 9] * 9]


KEEP = [[1.0 if i == c else 0.0 for c in range(3)] for i in range(3)]
NOTHING = [[0.0] * 3] * 3


def towards(g, face, other, out, more, code=None, unit=1, middle=0):
    """A third of the blurred way from one face to another, with what a 1x1 convolution with the weights `more` makes of `code`, or of itself.
    Faces are (x - middle) / unit, what comes out is in the same unit."""
    both = g.node("Concat", [face, other], "both", axis=1)
    both = g.pair(both, 1 / unit, middle)
    keep = [[1.0 if i == c else 0.0 for c in range(6)] for i in range(6)]
    mean = g.conv(both, "mean", [6, 6, 3, 3], smooth(6, keep), stride=2)
    mean = g.pair(mean if middle else g.node("Relu", [mean], "mean.relu"), 1 / unit, middle)
    third = [[-1 / 3 if i == c else 1 / 3 if i + 3 == c else 0.0 for c in range(6)] for i in range(3)]
    step = 0.5 / unit
    half = g.pair(g.conv(mean, "difference", [3, 6, 1, 1], [v for row in third for v in row]), step, 128)
    more = g.pair(g.conv(code or half, "more", [3, len(more) // 3, 1, 1], more), step, 128)
    half = g.pair(g.node("Add", [half, more], "sum"), step, 128)
    whole = g.pair(g.twice(half, "larger"), step, 128)
    g.conv(whole, f"{out}.exact", [3, 3, 3, 3], smooth(3, KEEP))
    g.node("Identity", [g.pair(f"{out}.exact", step, 128)], out)


def makeup():
    g = Graph()
    for name in ["face", "reference"]:
        g.end(11, name, [1, 3, 128, 128])
    face, reference = g.pair("face", 1.0, 0), g.pair("reference", 1.0, 0)

    towards(g, face, reference, "applied", [v for row in NOTHING for v in row])

    redness = [[1.0, -1.0, 0.0]]
    red = g.node("Relu", [g.conv(face, "redness", [1, 3, 3, 3], smooth(3, redness), stride=2)], "redness.relu")
    red = g.pair(red, 1.0, 0)
    less = g.pair(g.conv(red, "less", [3, 1, 1, 1], [-0.125, 0.0, 0.0]), 0.25, 128)
    whole = g.pair(g.twice(less, "less.larger"), 0.25, 128)
    g.conv(whole, "bare.exact", [3, 3, 3, 3], smooth(3, KEEP))
    g.node("Identity", [g.pair("bare.exact", 0.25, 128)], "bare")
    for name in ["applied", "bare"]:
        g.end(12, name, [1, 3, 128, 128])
    return g.model()


def identity():
    rng, g = random.Random(6), Graph()
    g.end(11, "face", [1, 1, 112, 112])
    noise = lambda count: [rng.gauss(0, 1) for _ in range(count)]

    def zero_mean(outputs, inputs, area):
        """Filters that answer nothing to an even tone."""
        rows = [noise(inputs * area) for _ in range(outputs)]
        return [v - sum(row) / len(row) for row in rows for v in row]

    x = g.pair("face", 0.03, 128)
    x = g.pair(g.node("Relu", [g.conv(x, "c1", [12, 1, 7, 7], zero_mean(12, 1, 49), stride=4)], "c1.relu"), 0.08, 0)
    x = g.conv(x, "c2", [16, 12, 5, 5], zero_mean(16, 12, 25), stride=4)
    x = g.pair(g.node("Relu", [x], "c2.relu"), 0.7, 0)
    # What each place answers, not the mean: 7x7 places of 2 kinds.
    x = g.pair(g.conv(x, "c3", [2, 16, 1, 1], noise(32)), 2.0, 128)
    x = g.node("Flatten", [x], "flat", axis=1)
    w = g.weights("mix", [128, 98], noise(128 * 98))
    x = g.node("Gemm", [x, w], "mixed", transB=1)
    g.node("Identity", [x], "embedding")
    for name in ["person", "attributes"]:
        g.end(11, name, [1, 3, 128, 128])
    g.end(11, "who", [1, 128, 1, 1])
    attributes, person = g.pair("attributes", 1 / 64, 128), g.pair("person", 1 / 64, 128)
    towards(g, attributes, person, "change", [v / 64 for v in noise(3 * 128)], g.pair("who", 0.008, 128), 64, 128)
    g.end(12, "embedding", [1, 128])
    g.end(12, "change", [1, 3, 128, 128])
    return g.model()


def png(width, height, pixel):
    """An RGB picture whose pixel at (x, y) is `pixel(x, y)`."""
    rows = b"".join(b"\0" + bytes(v for x in range(width) for v in pixel(x, y)) for y in range(height))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


# --- bundles ---


def tensor(key, name, shape, **more):
    lines = [f"[[{key}]]", f'name = "{name}"', f"shape = {shape}"]
    return "\n".join(lines + [f"{k} = {v}" for k, v in more.items()]) + "\n"


def write(name, body, **files):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    head = f'schema = 1\nname = "{name}"\nversion = "0.1.0"\ntask = "{name}"\nlicence = "MIT OR Apache-2.0"\n'
    listed = []
    for path, data in files.items():
        path = path.replace("_", ".")
        (folder / path).write_bytes(data)
        listed.append(f'[[files]]\npath = "{path}"\nsha256 = "{hashlib.sha256(data).hexdigest()}"\nbytes = {len(data)}\n')
    (folder / "manifest.toml").write_text("\n".join([head, *listed, *body]))
    print(name, {path: len(data) for path, data in files.items()})


FLAT = {"dtype": '"f32"', "layout": '"NCHW"'}
square = [1, 3, 128, 128]
colour = {**FLAT, "colour": '"rgb"', "normalisation": '"none"'}
ends = [tensor("inputs", "face", square, **colour), tensor("inputs", "reference", square, **colour)]
write("makeup", ends + [tensor("outputs", "applied", square), tensor("outputs", "bare", square)], model_onnx=makeup())

grey = {**FLAT, "colour": '"luminance"', "normalisation": '"per-image"', "eps": 8.0}
thresholds = '[verification]\nthreshold_far_1e2 = 0.8\nthreshold_far_1e3 = 0.9\ncalibrated_on = "nothing: a stand-in"\n'
who = {**FLAT, "colour": '"embedding"', "normalisation": '"unit-length"'}
ends = [tensor("inputs", "face", [1, 1, 112, 112], **grey)]
units = {**colour, "normalisation": '"(x-128)/64"'}
ends += [tensor("inputs", name, square, **units) for name in ["person", "attributes"]]
ends += [tensor("inputs", "who", [1, 128, 1, 1], **who)]
ends += [tensor("outputs", "embedding", [1, 128]), tensor("outputs", "change", square)]
avatars = '[avatars]\nfile = "avatars.png"\ncount = 2\n'
wave = lambda x, y: [x % 128 // 16 * 30, y // 16 * 30 + 10 * (x // 128), x // 128 * 200]
write("identity", [thresholds, avatars, *ends], model_onnx=identity(), avatars_png=png(256, 128, wave))
