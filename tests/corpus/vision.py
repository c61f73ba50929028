"""Images: convolutions, pooling, normalisation, patches, windows, and what is built of them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, init


class LeNet(ParamList):
    conv1: Float[Tensor, "c1 1 5 5"]
    conv2: Float[Tensor, "c2 c1 5 5"]
    w1: Float[Tensor, "c2*16 hidden"]
    b1: Float[Tensor, " hidden"]
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"]


def lenet_loss(p: LeNet, x: Float[Tensor, "batch 1 28 28"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.max_pool2d(F.relu(F.conv2d(x, p.conv1)), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, p.conv2)), 2)
    h = F.relu(torch.flatten(h, 1) @ p.w1 + p.b1)
    return F.cross_entropy(h @ p.w2 + p.b2, y)


class AnySizeCNN(ParamList):
    conv1: Float[Tensor, "c1 cin 3 3"]
    conv2: Float[Tensor, "c2 c1 3 3"]
    head: Float[Tensor, "c2*(height//4)*(width//4) classes"]


def any_size_cnn_loss(
    p: AnySizeCNN, x: Float[Tensor, "batch cin height width"], y: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    h = F.max_pool2d(F.relu(F.conv2d(x, p.conv1, padding=1)), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, p.conv2, padding=1)), 2)
    return F.cross_entropy(h.flatten(1) @ p.head, y)


class BasicBlock(ParamList):
    conv1: Float[Tensor, "c c 3 3"]
    scale1: Float[Tensor, " c"] = init.ones()
    shift1: Float[Tensor, " c"]
    conv2: Float[Tensor, "c c 3 3"]
    scale2: Float[Tensor, " c"] = init.ones()
    shift2: Float[Tensor, " c"]


def residual_block(p: BasicBlock, x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
    h = F.conv2d(x, p.conv1, padding=1)
    h = F.relu(F.batch_norm(h, None, None, p.scale1, p.shift1, training=True))
    h = F.conv2d(h, p.conv2, padding=1)
    h = F.batch_norm(h, None, None, p.scale2, p.shift2, training=True)
    return F.relu(h + x)


class Downsample(ParamList):
    conv: Float[Tensor, "cout cin 3 3"]
    scale: Float[Tensor, " cout"] = init.ones()
    shift: Float[Tensor, " cout"]
    shortcut: Float[Tensor, "cout cin 1 1"]


def downsampling_block(
    p: Downsample, x: Float[Tensor, "batch cin height width"]
) -> Float[Tensor, "batch cout (height+1)//2 (width+1)//2"]:
    h = F.conv2d(x, p.conv, stride=2, padding=1)
    h = F.batch_norm(h, None, None, p.scale, p.shift, training=True)
    return F.relu(h + F.conv2d(x, p.shortcut, stride=2))


class Same(ParamList):
    w: Float[Tensor, "c c k k"]
    b: Float[Tensor, " c"]


def same_convolution(p: Same, x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
    return x + F.silu(F.conv2d(x, p.w, p.b, padding=p.w.shape[-1] // 2))


class Separable(ParamList):
    expand: Float[Tensor, "6*c c 1 1"]
    depthwise: Float[Tensor, "6*c 1 3 3"]
    project: Float[Tensor, "c 6*c 1 1"]


def inverted_residual(p: Separable, x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
    h = F.relu6(F.conv2d(x, p.expand))
    h = F.relu6(F.conv2d(h, p.depthwise, padding=1, groups=h.shape[1]))
    return x + F.conv2d(h, p.project)


class ConvNeXt(ParamList):
    depthwise: Float[Tensor, "dim 1 7 7"]
    scale: Float[Tensor, " dim"] = init.ones()
    shift: Float[Tensor, " dim"]
    up: Float[Tensor, "dim 4*dim"]
    down: Float[Tensor, "4*dim dim"]
    gamma: Float[Tensor, " dim"]


def convnext_block(p: ConvNeXt, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
    h = F.conv2d(x, p.depthwise, padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
    h = F.layer_norm(h, (h.shape[-1],), p.scale, p.shift)
    h = p.gamma * (F.gelu(h @ p.up) @ p.down)
    return x + h.permute(0, 3, 1, 2)


class SqueezeExcite(ParamList):
    reduce: Float[Tensor, "c squeezed"]
    expand: Float[Tensor, "squeezed c"]
    scale: Float[Tensor, " c"] = init.ones()
    shift: Float[Tensor, " c"]


def squeeze_excite(
    p: SqueezeExcite, x: Float[Tensor, "batch c height width"], groups: int = 8
) -> Float[Tensor, "batch c height width"]:
    pooled = x.mean(dim=(2, 3))
    gate = torch.sigmoid(F.silu(pooled @ p.reduce) @ p.expand)
    return F.group_norm(x * gate[:, :, None, None], groups, p.scale, p.shift)


class SuperResolution(ParamList):
    conv1: Float[Tensor, "c 3 5 5"]
    conv2: Float[Tensor, "12 c 3 3"]


def super_resolution_loss(
    p: SuperResolution, small: Float[Tensor, "batch 3 height width"], large: Float[Tensor, "batch 3 2*height 2*width"]
) -> Float[Tensor, ""]:
    h = torch.tanh(F.conv2d(small, p.conv1, padding=2))
    return F.mse_loss(F.pixel_shuffle(F.conv2d(h, p.conv2, padding=1), 2), large)


class ViT(ParamList):
    patch: Float[Tensor, "dim 3 8 8"]
    token: Float[Tensor, "1 1 dim"]
    places: Float[Tensor, "1 17 dim"]
    qkv: Float[Tensor, "dim 3*dim"]
    out: Float[Tensor, "dim dim"]
    head: Float[Tensor, "dim classes"]


def vit_loss(
    p: ViT, image: Float[Tensor, "batch 3 32 32"], label: Int[Tensor, " batch"], heads: int = 4
) -> Float[Tensor, ""]:
    x = F.conv2d(image, p.patch, stride=8).flatten(2).transpose(1, 2)
    x = torch.cat((p.token.expand(x.shape[0], -1, -1), x), dim=1) + p.places
    batch, n, dim = x.shape
    qkv = (F.layer_norm(x, (dim,)) @ p.qkv).reshape(batch, n, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, dim) @ p.out
    return F.cross_entropy(F.layer_norm(x[:, 0], (dim,)) @ p.head, label)


class PatchEmbedding(ParamList):
    w: Float[Tensor, "c*16 dim"]


def patch_embedding(
    p: PatchEmbedding, x: Float[Tensor, "batch c height width"], size: int = 4
) -> Float[Tensor, "batch (height//4)*(width//4) dim"]:
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // size, size, w // size, size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // size) * (w // size), c * size * size) @ p.w


class UNet(ParamList):
    down: Float[Tensor, "c cin 3 3"]
    middle: Float[Tensor, "2*c c 3 3"]
    up: Float[Tensor, "2*c c 2 2"]
    merge: Float[Tensor, "c 2*c 3 3"]
    out: Float[Tensor, "classes c 1 1"]


def unet_loss(
    p: UNet, x: Float[Tensor, "batch cin height width"], mask: Int[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    skip = F.relu(F.conv2d(x, p.down, padding=1))
    h = F.relu(F.conv2d(F.max_pool2d(skip, 2), p.middle, padding=1))
    h = F.conv_transpose2d(h, p.up, stride=2)
    h = F.relu(F.conv2d(torch.cat([skip, h], dim=1), p.merge, padding=1))
    return F.cross_entropy(F.conv2d(h, p.out), mask)


class Pyramid(ParamList):
    lateral: Float[Tensor, "dim c2 1 1"]
    top: Float[Tensor, "dim c3 1 1"]
    smooth: Float[Tensor, "dim dim 3 3"]


def feature_pyramid(
    p: Pyramid, fine: Float[Tensor, "batch c2 height width"], coarse: Float[Tensor, "batch c3 h w"]
) -> Float[Tensor, "batch dim height width"]:
    side = F.conv2d(fine, p.lateral)
    above = F.interpolate(F.conv2d(coarse, p.top), size=side.shape[-2:], mode="nearest")
    return F.conv2d(side + above, p.smooth, padding=1)


class Window(ParamList):
    qkv: Float[Tensor, "dim 3*dim"]
    bias: Float[Tensor, "49 heads"]
    out: Float[Tensor, "dim dim"]


def window_attention(
    p: Window, x: Float[Tensor, "batch height width dim"], size: int = 4
) -> Float[Tensor, "batch height width dim"]:
    b, height, width, dim = x.shape
    heads = p.bias.shape[1]
    windows = x.view(b, height // size, size, width // size, size, dim).transpose(2, 3).reshape(-1, size * size, dim)
    q, k, v = (windows @ p.qkv).view(-1, size * size, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    at = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
    offset = at[:, :, None] - at[:, None, :] + size - 1
    bias = p.bias[offset[0] * (2 * size - 1) + offset[1]].permute(2, 0, 1)
    mixed = ((q @ k.transpose(-2, -1)) * (dim // heads) ** -0.5 + bias).softmax(-1) @ v
    mixed = mixed.transpose(1, 2).reshape(b, height // size, width // size, size, size, dim) @ p.out
    return mixed.transpose(2, 3).reshape(b, height, width, dim)


def box_iou(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    corner = torch.maximum(a[:, None, :2], b[:, :2])
    opposite = torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (opposite - corner).clamp(min=0).prod(-1)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(-1) for box in (a, b))
    return shared / (area_a[:, None] + area_b - shared)


def dice_loss(
    logits: Float[Tensor, "batch classes height width"], mask: Int[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    truth = F.one_hot(mask, logits.shape[1]).permute(0, 3, 1, 2).float()
    probability = logits.softmax(dim=1)
    shared = (probability * truth).sum(dim=(0, 2, 3))
    return 1 - (2 * shared / (probability + truth).sum(dim=(0, 2, 3)).clamp(min=1e-6)).mean()


def style_loss(
    features: Float[Tensor, "batch c height width"], style: Float[Tensor, "batch c height2 width2"]
) -> Float[Tensor, ""]:
    def gram(x: Tensor) -> Tensor:
        return torch.einsum("bchw,bdhw->bcd", x, x) / (x.shape[2] * x.shape[3])

    return F.mse_loss(gram(features), gram(style))


def smoothness_loss(flow: Float[Tensor, "batch 2 height width"], image: Float[Tensor, "batch 3 height width"]) -> (
    Float[Tensor, ""]
):  # fmt: skip
    edge_x = (image[..., :, 1:] - image[..., :, :-1]).abs().mean(1, keepdim=True)
    edge_y = (image[..., 1:, :] - image[..., :-1, :]).abs().mean(1, keepdim=True)
    dx = (flow[..., :, 1:] - flow[..., :, :-1]).abs() * torch.exp(-edge_x)
    dy = (flow[..., 1:, :] - flow[..., :-1, :]).abs() * torch.exp(-edge_y)
    return dx.mean() + dy.mean()


class Warp(ParamList):
    w: Float[Tensor, "c 6"]
    b: Float[Tensor, " 6"]


def spatial_transformer(p: Warp, x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
    theta = (x.mean((2, 3)) @ p.w + p.b).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
