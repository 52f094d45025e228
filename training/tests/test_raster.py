"""The renderer against pictures whose every pixel is known."""

import numpy as np

from visaged_training.raster import draw, resample, vertex_normals

F = np.float32


def canvas(size=32):
    return np.zeros((size, size, 3), F), np.full((size, size), -1e9, F)


def square(x0, y0, x1, y1, z):
    """Two triangles that face the viewer, with a texture of one colour."""
    p = np.array([[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]], F)
    tri = np.array([[0, 3, 1], [1, 3, 2]], np.int32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], F)
    return p, tri, uv


def flat(colour, alpha=255):
    return np.ascontiguousarray(np.broadcast_to(np.array([*colour, alpha], np.uint8), (4, 4, 4)))


def put(image, depth, shape, texture, alpha=0, ambient=1.0):
    p, tri, uv = shape
    normals = np.zeros_like(p)
    normals[:, 2] = 1
    one, none = np.ones(3, F), np.zeros(3, F)
    draw(p, normals, tri, tri, uv, texture, image, depth, one * F(ambient / 0.8), none,
         np.array([0, 0, 1], F), none, np.array([0, 0, 1], F), F(0), alpha, F(0), 1)  # fmt: skip


def test_square_is_filled_to_the_pixel():
    image, depth = canvas()
    put(image, depth, square(8, 4, 24, 20, 0), flat((100, 150, 200)))
    want = np.zeros((32, 32, 3))
    want[4:20, 8:24] = [100, 150, 200]
    assert np.abs(image - want).max() < 0.01


def test_nearer_square_hides_the_farther_one_in_either_order():
    for order in ((0, 1), (1, 0)):
        image, depth = canvas()
        shapes = [(square(4, 4, 28, 28, 0), flat((50, 50, 50))), (square(10, 10, 20, 20, 5), flat((200, 0, 0)))]
        for k in order:
            put(image, depth, *shapes[k])
        assert np.allclose(image[15, 15], [200, 0, 0], atol=0.01)
        assert np.allclose(image[6, 6], [50, 50, 50], atol=0.01)


def test_half_transparent_texture_mixes():
    image, depth = canvas()
    put(image, depth, square(0, 0, 32, 32, 0), flat((200, 200, 200)))
    put(image, depth, square(0, 0, 32, 32, 1), flat((0, 0, 0), 102), alpha=1)
    assert np.allclose(image[16, 16], 120, atol=1)


def test_back_faces_are_left_out():
    image, depth = canvas()
    p, tri, uv = square(4, 4, 28, 28, 0)
    put(image, depth, (p, np.ascontiguousarray(tri[:, ::-1]), uv), flat((255, 255, 255)))
    assert image.max() == 0


def test_normals_of_a_flat_patch():
    p, tri, _ = square(0, 0, 1, 1, 0)
    p = p * np.array([1, -1, 1], F)  # y up
    assert np.allclose(np.abs(vertex_normals(p, tri)), [0, 0, 1], atol=1e-6)


def test_resample_identity_and_shift():
    image = np.random.default_rng(0).uniform(0, 255, (16, 16)).astype(F)
    same = resample(image, np.array([[1.0, 0, 0], [0, 1.0, 0]]), 16, 1)
    assert np.abs(same - image)[:-1, :-1].max() < 0.01
    moved = resample(image, np.array([[1.0, 0, 2], [0, 1.0, 0]]), 16, 1)
    assert np.abs(moved[:-1, :12] - image[:-1, 2:14]).max() < 0.01
