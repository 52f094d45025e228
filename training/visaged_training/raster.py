"""A small z-buffer rasteriser: smooth normals, UV texture, one key light, one fill light, a highlight, alpha.

Weak perspective is done by the caller; within a triangle interpolation is affine, which is enough at face distance.
"""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(fastmath=True, cache=True)
def vertex_normals(v, tri):
    n = np.zeros_like(v)
    for t in range(tri.shape[0]):
        a, b, c = tri[t, 0], tri[t, 1], tri[t, 2]
        ux, uy, uz = v[b, 0] - v[a, 0], v[b, 1] - v[a, 1], v[b, 2] - v[a, 2]
        wx, wy, wz = v[c, 0] - v[a, 0], v[c, 1] - v[a, 1], v[c, 2] - v[a, 2]
        x, y, z = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for i in (a, b, c):
            n[i, 0] += x
            n[i, 1] += y
            n[i, 2] += z
    for i in range(n.shape[0]):
        length = np.sqrt(n[i, 0] ** 2 + n[i, 1] ** 2 + n[i, 2] ** 2) + 1e-12
        n[i, 0] /= length
        n[i, 1] /= length
        n[i, 2] /= length
    return n


@nb.njit(fastmath=True, cache=True)
def _texel(tex, v, u, ch):
    iu, iv = int(u), int(v)
    fu, fv = u - iu, v - iv
    top = tex[iv, iu, ch] * (1 - fu) + tex[iv, iu + 1, ch] * fu
    low = tex[iv + 1, iu, ch] * (1 - fu) + tex[iv + 1, iu + 1, ch] * fu
    return top * (1 - fv) + low * fv


@nb.njit(fastmath=True, cache=True)
def draw(p, nrm, tri, tri_uv, uv, tex, img, zb, amb, key, key_dir, fill, fill_dir, spec, alpha, bias, cull):
    """Draw one mesh. p: [V,3] screen x, y in pixels and z (larger is nearer); tex: [H,W,4] u8; img: [H,W,3] f32."""
    height, width = zb.shape
    th, tw = tex.shape[0], tex.shape[1]
    hx, hy, hz = key_dir[0], key_dir[1], key_dir[2] + 1
    hl = 1 / np.sqrt(hx * hx + hy * hy + hz * hz)
    for t in range(tri.shape[0]):
        a, b, c = tri[t, 0], tri[t, 1], tri[t, 2]
        x0, y0, x1, y1, x2, y2 = p[a, 0], p[a, 1], p[b, 0], p[b, 1], p[c, 0], p[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0 or (cull and area > 0):  # y points down, so a front face has negative area
            continue
        left, right = int(max(0, np.ceil(min(x0, x1, x2) - 0.5))), int(min(width - 1, np.floor(max(x0, x1, x2) - 0.5)))
        top, low = int(max(0, np.ceil(min(y0, y1, y2) - 0.5))), int(min(height - 1, np.floor(max(y0, y1, y2) - 0.5)))
        if left > right or top > low:
            continue
        inv = 1 / area
        ua, ub, uc = tri_uv[t, 0], tri_uv[t, 1], tri_uv[t, 2]
        for y in range(top, low + 1):
            py = y + 0.5
            for x in range(left, right + 1):
                px = x + 0.5
                w1 = ((px - x0) * (y2 - y0) - (x2 - x0) * (py - y0)) * inv
                w2 = ((x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)) * inv
                w0 = 1 - w1 - w2
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                z = w0 * p[a, 2] + w1 * p[b, 2] + w2 * p[c, 2] + bias
                if z <= zb[y, x]:
                    continue
                u = (w0 * uv[ua, 0] + w1 * uv[ub, 0] + w2 * uv[uc, 0]) * tw - 0.5
                v = (w0 * uv[ua, 1] + w1 * uv[ub, 1] + w2 * uv[uc, 1]) * th - 0.5
                u = min(max(u, 0.0), tw - 1.001)
                v = min(max(v, 0.0), th - 1.001)
                opacity = 1.0
                if alpha:
                    opacity = _texel(tex, v, u, 3) / 255.0
                    if opacity < 0.03:
                        continue
                nx = w0 * nrm[a, 0] + w1 * nrm[b, 0] + w2 * nrm[c, 0]
                ny = w0 * nrm[a, 1] + w1 * nrm[b, 1] + w2 * nrm[c, 1]
                nz = w0 * nrm[a, 2] + w1 * nrm[b, 2] + w2 * nrm[c, 2]
                length = 1 / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
                nx, ny, nz = nx * length, ny * length, nz * length
                if nz < 0 and not cull:
                    nx, ny, nz = -nx, -ny, -nz
                k = max(0.0, (nx * key_dir[0] + ny * key_dir[1] + nz * key_dir[2]) * 0.85 + 0.15)
                f = max(0.0, nx * fill_dir[0] + ny * fill_dir[1] + nz * fill_dir[2])
                s = max(0.0, (nx * hx + ny * hy + nz * hz) * hl)
                s = s * s
                s = s * s
                s = s * s
                shine = spec * s * s * 255.0
                for ch in range(3):
                    light = amb[ch] * (0.8 + 0.2 * ny) + key[ch] * k + fill[ch] * f
                    colour = _texel(tex, v, u, ch) * light + shine * key[ch]
                    img[y, x, ch] = img[y, x, ch] * (1 - opacity) + colour * opacity
                if opacity > 0.5:
                    zb[y, x] = z


@nb.njit(fastmath=True, cache=True)
def resample(img, inv, size, over):
    """img f32 [H,W]; inv 2x3 takes output to input pixels; returns size x size, `over` x `over` samples a pixel."""
    height, width = img.shape
    out = np.zeros((size, size), np.float32)
    for y in range(size * over):
        py = (y + 0.5) / over
        for x in range(size * over):
            px = (x + 0.5) / over
            u = inv[0, 0] * px + inv[0, 1] * py + inv[0, 2] - 0.5
            v = inv[1, 0] * px + inv[1, 1] * py + inv[1, 2] - 0.5
            u = min(max(u, 0.0), width - 1.001)
            v = min(max(v, 0.0), height - 1.001)
            iu, iv = int(u), int(v)
            fu, fv = u - iu, v - iv
            top = img[iv, iu] * (1 - fu) + img[iv, iu + 1] * fu
            low = img[iv + 1, iu] * (1 - fu) + img[iv + 1, iu + 1] * fu
            out[y // over, x // over] += top * (1 - fv) + low * fv
    return out / (over * over)
