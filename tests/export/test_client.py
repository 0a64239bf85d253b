"""The client sends pictures that a server reads as people see them, tries again, and takes no bad
answer for a class."""

import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import client
import numpy as np
import pytest
import tensorflow as tf
from client import ServerError, classify, main, read_picture
from PIL import ExifTags, Image, ImageOps
from toy_models import batch_of, picture, save_model, serving

from deit_tf.data.decode import decode_image

RANDOM = np.random.default_rng(0)
COLORS = Image.fromarray(RANDOM.integers(256, size=(40, 24, 3), dtype=np.uint8))
DEEP = Image.fromarray(RANDOM.integers(2**16, size=(40, 24), dtype=np.uint16))


def stored(path, image=COLORS, orientation=None, **options):
    """Write a picture, as a camera that was turned does."""
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    image.save(path, **options)
    return path


def pixels(encoded):
    """As the server decodes them."""
    return decode_image(encoded).numpy()


def as_seen(path):
    """As a viewer shows them."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "I;16":
        return np.repeat((np.array(upright) >> 8)[..., None], 3, axis=-1)
    return np.array(upright.convert("RGB"))


KINDS = {
    "rgb.jpg": COLORS,
    "gray.jpg": COLORS.convert("L"),
    "cmyk.jpg": COLORS.convert("CMYK"),
    "rgb.png": COLORS,
    "palette.png": COLORS.quantize(16),
    "alpha.png": COLORS.convert("RGBA"),
    "16-bit.png": DEEP,
    "rgb.webp": COLORS,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_sent_upright(tmp_path, name, orientation):
    path = stored(tmp_path / name, KINDS[name], orientation)
    sent = read_picture(path)
    np.testing.assert_array_equal(pixels(sent), as_seen(path))
    assert (sent == path.read_bytes()) == (orientation == 1)
    assert Image.open(io.BytesIO(sent)).getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert read_picture(path, exif=False) == path.read_bytes()


@pytest.mark.parametrize("orientation", [None, 0, 1, 9, 255])
@pytest.mark.parametrize("name", ["rgb.jpg", "rgb.png", "rgb.webp"])
def test_files_that_are_upright_are_sent_byte_for_byte(tmp_path, name, orientation):
    path = stored(tmp_path / name, orientation=orientation)
    assert read_picture(path) == path.read_bytes()


def test_exif_data_that_nobody_can_read_turn_nothing(tmp_path):
    path = stored(tmp_path / "odd.jpg", exif=b"Exif\0\0no TIFF header at all")
    assert read_picture(path) == path.read_bytes()


GRAY = Image.fromarray(RANDOM.integers(256, size=(40, 24), dtype=np.uint8))
INVERTED = GRAY.convert("P")
INVERTED.putpalette([255 - i // 3 for i in range(768)])
TRANSPARENT = COLORS.convert("RGBA")
TRANSPARENT.putalpha(GRAY)
ODD = {
    "palette.bmp": COLORS.quantize(256),
    "few colors.bmp": COLORS.quantize(4),
    "inverted.bmp": INVERTED,
    "one bit.bmp": COLORS.convert("1"),
    "transparent.webp": TRANSPARENT,
}


@pytest.mark.parametrize("name", ODD)
def test_what_tensorflow_misreads_is_sent_as_png(tmp_path, name):
    path = stored(tmp_path / name, ODD[name], lossless=True)
    sent = read_picture(path)
    np.testing.assert_array_equal(pixels(sent), as_seen(path))
    assert Image.open(io.BytesIO(sent)).format == "PNG"


@pytest.mark.parametrize("name, image", [("rgb.bmp", COLORS), ("gray.bmp", GRAY)])
def test_other_bmp_files_are_sent_byte_for_byte(tmp_path, name, image):
    path = stored(tmp_path / name, image)
    sent = read_picture(path)
    assert sent == path.read_bytes()
    np.testing.assert_array_equal(pixels(sent), as_seen(path))


def moving(path, form):
    COLORS.save(path, form, save_all=True, append_images=[COLORS.rotate(180)])


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("text.jpg", lambda path: path.write_text("hello"), "text.jpg is no picture"),
        ("cut.jpg", lambda path: path.write_bytes(picture()[:300]), "cut.jpg is no picture"),
        ("large.png", lambda path: Image.new("L", (8000, 5000)).save(path), "8000 x 5000"),
        ("line.png", lambda path: Image.new("L", (2000, 1)).save(path), "2000 x 1"),
        ("moving.gif", lambda path: moving(path, "GIF"), "JPEG, PNG, BMP, WEBP"),
        ("moving.webp", lambda path: moving(path, "WEBP"), "moving.webp is a WebP file that moves"),
    ],
)
def test_pictures_that_are_not_sent(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_picture(tmp_path / name)


def test_a_busy_server_is_asked_again(monkeypatch):
    pauses = []
    monkeypatch.setattr("client.time.sleep", pauses.append)
    monkeypatch.setattr("client.random.uniform", lambda low, high: (low + high) / 2)
    for protocol in ("grpc", "rest"):
        options = {"server": "localhost:9", "protocol": protocol, "retries": 2, "timeout": 2}
        with pytest.raises(ServerError):
            classify([picture()], "student", **options)
    assert pauses == [0.2, 0.4] * 2


@contextmanager
def answering(body, code=200):
    """A server of another make, which gives the same answer to everyone."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def row(*probabilities):
    return {"top_k_labels": ["cat"] * 2, "top_k_probabilities": probabilities}


@pytest.mark.parametrize(
    "body, message",
    [
        (json.dumps({"predictions": [row(float("nan"), 0.5)]}), "not finite"),
        (json.dumps({"predictions": [row(float("inf"), 0.5)]}), "not finite"),
        (json.dumps({"predictions": [row(None, 0.5)]}), "no top_k_labels"),
        (json.dumps({"predictions": [row(0.5)]}), "no top_k_labels"),
        (json.dumps({"predictions": [[0.5]]}), "no top_k_labels"),
        (json.dumps({"predictions": []}), "0 answers for 1"),
        (json.dumps({"outputs": {}}), "no top_k_labels"),
        (json.dumps([]), "no top_k_labels"),
        ("<html>It works!</html>", "no top_k_labels"),
    ],
)
def test_an_answer_of_rest_that_is_no_good_is_an_error(body, message):
    with answering(body) as server, pytest.raises(ServerError, match=message):
        classify([picture()], "student", server=server, protocol="rest", retries=0)


def test_an_answer_of_grpc_that_is_no_good_is_an_error(monkeypatch):
    def answer(self, request, timeout):
        outputs = {
            "top_k_labels": tf.make_tensor_proto([[b"cat"]]),
            "top_k_probabilities": tf.make_tensor_proto([[float("nan")]]),
        }
        return client.predict_pb2.PredictResponse(outputs=outputs)

    class Stub:
        Predict = answer

        def __init__(self, channel):
            pass

    monkeypatch.setattr(client.prediction_service_pb2_grpc, "PredictionServiceStub", Stub)
    with pytest.raises(ServerError, match="not finite"):
        classify([picture()], "student", server="localhost:9")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Says which color is at the top of a picture."""

    def top(encoded):
        rows = tf.cast(decode_image(encoded)[:4], tf.float32)  # [4, W, 3]
        red, _, blue = tf.unstack(tf.reduce_mean(rows, [0, 1]))
        return tf.cond(red > blue, lambda: "red", lambda: "blue")

    def colors(image_bytes):
        names = tf.map_fn(top, image_bytes)[:, None]
        return {"top_k_labels": names, "top_k_probabilities": tf.ones_like(names, "float32")}

    folder = tmp_path_factory.mktemp("served")
    signature = (colors, batch_of(tf.string, "image_bytes"))
    save_model(folder / "colors" / "1", serving_default=signature)
    with serving(folder) as (_, address, _):
        yield address


def test_the_command(server, tmp_path, monkeypatch, capsys):
    """A picture of blue above red, from a camera that was held upside down."""
    halves = Image.new("RGB", (40, 40), "red")
    halves.paste((0, 0, 255), (0, 20, 40, 40))
    path = str(stored(tmp_path / "photo.jpg", halves, orientation=3))
    arguments = ["client.py", path, "--model", "colors", "--server", server]

    for more, color in ([], "blue"), (["--no-exif"], "red"):
        monkeypatch.setattr("sys.argv", arguments + more)
        main()
        assert capsys.readouterr().out.splitlines() == [path, f"  100.0%  {color}"]

    monkeypatch.setattr("sys.argv", [arguments[0], str(tmp_path / "missing.jpg"), *arguments[2:]])
    with pytest.raises(SystemExit, match="Not classified: .*missing.jpg"):
        main()
