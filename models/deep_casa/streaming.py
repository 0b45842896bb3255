"""Causal Deep CASA on a signal that comes in blocks: what comes out equals what the whole file gives.

The networks are those of models/deep_casa/dense_unet.py and models/deep_casa/grouping.py with their weights laid out
for few frames:

- a 3x3 convolution is one product of matrices for each of the six sums of a row tile (see models/layers/conv.py); the
  sums of the last two frames are kept, so that no frame is looked at twice;
- batch norms are folded into the kernels behind them. An offset counts inside a map but not in the zeros around it:
  biases differ at the first and last row, and the frames before the first hold what the norm would turn into 0;
- cumulative norms carry their mean and variance.
"""

import numpy as np
from keras import ops

from models.deep_casa.dense_unet import frequency_padding, skip_crops, uncompress
from models.deep_casa.grouping import OnlineClustering
from models.layers import conv
from models.layers.spectral import FADE, sqrt_hann
from models.layers.streaming import (
    Affine,
    CumulativeMoments,
    StreamingConvBlock,
    WaveformStream,
    pointwise,
    tensor,
    to_numpy,
    total,
)
from models.losses import permute_frames

INPUT_SUMS = (conv.PAIRS @ conv.INPUT_SUMS).astype("float32")
OUTPUT_SUMS = (conv.OUTPUT_SUMS @ conv.PAIRS).astype("float32")


class StreamingSeparator(WaveformStream):
    """Separates one recording block by block. One per stream.

    Concatenated, the outputs are `istft` (parity off) of the causal networks' estimates on the `stft` of the whole
    recording, put in order by `OnlineClustering`: as many samples as came in. A sample comes out as soon as the last
    window that covers it has come in, so that the algorithmic latency is that window and the block. Samples behind the
    last whole window are 0, as those of `istft`; who wants them separated adds zeros before `flush`.

    Args:
        unet: causal DenseUNet.
        grouping: causal SequentialGrouping; None for a net that was trained with one order an utterance.
        fft_size, hop_size: of the STFT, samples.
        compile: given a pure function `state, frames -> state, estimates` and examples of both, what to call instead,
            such as a compiled function. Any number of frames comes.

    Raises:
        ValueError: a network is not causal.
    """

    def __init__(self, unet, grouping=None, fft_size=256, hop_size=64, compile=lambda step, state, frames: step):
        for model in filter(None, (unet, grouping)):
            if not model.causal:
                raise ValueError(f"{model.name} looks at frames to come; only causal networks can stream")
        # Last of the parts are the squared windows.
        super().__init__(unet.talkers, fft_size, hop_size, parts=unet.talkers + 1)
        self.talkers, self.fft_size = unet.talkers, fft_size
        self.networks = StreamingNetworks(unet, grouping)
        self.window = sqrt_hann(fft_size)
        self.reset()
        self._step = compile(self.networks, self._state, np.zeros((1, unet.bins, 2), "float32"))

    def reset(self):
        super().reset()
        self._state = self.networks.initial_state()

    def _run(self, frames):
        spectra = np.fft.rfft(frames * self.window)
        spectra = np.stack([spectra.real, spectra.imag], axis=-1).astype("float32")
        self._state, estimates = self._step(self._state, ops.convert_to_tensor(spectra))
        estimates = ops.convert_to_numpy(estimates)
        pieces = np.empty((self.parts, len(frames), self.fft_size))
        pieces[:-1] = np.fft.irfft(estimates[..., 0] + 1j * estimates[..., 1], self.fft_size) * self.window
        pieces[-1] = np.square(self.window)
        return pieces

    def _finish(self, signal):
        return signal[:-1] / np.maximum(signal[-1], FADE * self.fft_size / 2 / self.hop_size)


class StreamingNetworks:
    """Both networks and the clustering as a pure function of a state and some frames.

    Call: (state, frames [frames, bins, 2]) -> (state, estimates [talkers, frames, bins, 2] in the talkers' order).
    """

    def __init__(self, unet, grouping=None):
        self.unet = StreamingDenseUNet(unet)
        self.grouping = grouping and StreamingGrouping(grouping)
        self.clustering = grouping and OnlineClustering(grouping.talkers)

    def initial_state(self):
        """State before the first frame: nested lists of tensors."""
        state = [self.unet.initial_state()]
        if self.grouping:
            state += [self.grouping.initial_state(), self.clustering.initial_state(self.grouping.embedding_dim)]
        return state

    def __call__(self, state, frames):
        unet_state, estimates = self.unet(state[0], frames)
        if not self.grouping:
            return [unet_state], estimates
        grouping_state, embeddings = self.grouping(state[1], frames, estimates)
        energies = ops.sum(ops.square(frames), axis=(1, 2))
        clustering_state, order = self.clustering.assign(state[2], embeddings, energies)
        return [unet_state, grouping_state, clustering_state], permute_frames(estimates[None], order[None])[0]


# Dense-UNet ---------------------------------------------------------------------------------------
#
# Maps are [rows, frames, channels], there being one recording. In reshapes the number of frames is -1, so that nothing
# has to be computed at run time: with few frames, time goes by the number of operations.


class StreamingDenseUNet:
    """Causal DenseUNet: (state, frames [frames, bins, 2]) -> (state, estimates [talkers, frames, bins, 2])."""

    def __init__(self, unet):
        self.talkers, self.bins = unet.talkers, unet.bins
        channels = unet.settings["channels"]
        self.padding, (self.extra, _) = frequency_padding(unet.bins, unet.scales)
        self.crops = skip_crops(unet.scales)
        rows = unet.bins + sum(self.padding)
        self.encoder = []
        for block in unet.encoder:
            width = channels if self.encoder else 2
            self.encoder.append(StreamingDenseBlock(block, rows, [Affine.identity(width)]))
            rows = (rows - 2) // 2
        rows = 2 * rows
        # Maxima cannot be taken before a norm. Behind the deepest block, as in the decoder, there is none.
        affines = [Affine.of(block.norms[4]) for block in unet.encoder[:-1]]
        self.encoder_affines = [(tensor(affine.scale), tensor(affine.offset)) for affine in affines]
        affine = Affine.of(unet.encoder[-1].norms[4])
        self.decoder, self.ups = [], []
        for up, norm, block in zip(unet.ups, unet.up_norms, unet.decoder):
            kernel = to_numpy(up.kernel)[:, 0].transpose(2, 0, 1)  # [in, 2, filters]
            kernel, bias = affine.fold(kernel.reshape(channels, -1), np.tile(to_numpy(up.bias), 2))
            self.ups.append((tensor(kernel), tensor(bias)))
            rows = 2 * rows
            self.decoder.append(StreamingDenseBlock(block, rows, [Affine.identity(channels), Affine.of(norm)]))
            rows -= 2
            affine = Affine.of(block.norms[4])
        hidden, masks = (to_numpy(layer.kernel)[0, 0] for layer in (unet.hidden, unet.masks))
        self.hidden = [tensor(x) for x in affine.fold(hidden, to_numpy(unet.hidden.bias))]
        self.masks = tensor(masks), tensor(unet.masks.bias)

    def initial_state(self):
        return [block.initial_state() for block in (*self.encoder, *self.decoder)]

    def __call__(self, state, frames):
        taps = ops.arange(ops.shape(frames)[0])[:, None] + np.arange(3, dtype="int32")
        before, after = iter(state), []

        def run(block, maps):
            new, x = block(next(before), maps, taps)
            after.append(new)
            return x

        x = ops.pad(ops.transpose(frames, (1, 0, 2)), (self.padding, (0, 0), (0, 0)))
        skips = []
        for block, (scale, offset) in zip(self.encoder, self.encoder_affines):
            x = run(block, [x]) * scale + offset
            skips.append(x)
            pairs = ops.reshape(x, (x.shape[0] // 2, 2, -1, x.shape[-1]))
            x = ops.maximum(*ops.unstack(pairs, axis=1))
        x = run(self.encoder[-1], [x])
        for block, (kernel, bias), crop in zip(self.decoder, self.ups, self.crops):
            rows, _, channels = x.shape
            x = ops.elu(pointwise(x, kernel, bias))
            x = ops.transpose(ops.reshape(x, (rows, -1, 2, channels)), (0, 2, 1, 3))
            x = ops.reshape(x, (2 * rows, -1, channels))
            x = run(block, [skips.pop()[crop : crop + 2 * rows], x])
        x = ops.elu(pointwise(x[self.extra : self.extra + self.bins], *self.hidden))
        masks = uncompress(pointwise(x, *self.masks))  # [F, T, C * 2]
        masks = ops.transpose(ops.reshape(masks, (self.bins, -1, self.talkers, 2)), (2, 1, 0, 3))
        mask_real, mask_imaginary = ops.unstack(masks, axis=-1)
        real, imaginary = ops.unstack(frames, axis=-1)
        estimates = [mask_real * real - mask_imaginary * imaginary, mask_real * imaginary + mask_imaginary * real]
        return after, ops.stack(estimates, axis=-1)


class StreamingDenseBlock:
    """Causal DenseBlock, its last norm left out.

    Call: (state, maps [rows, frames, any], taps) -> (state, [rows - 2, frames, channels]). `taps` [frames, 3] are, for
    every frame, itself and the two before, counted from the first that the state holds.

    Inside, the rows of maps are in the order in which sums over row tiles come out: row 4i + j at j * tiles + i.

    Args:
        block: DenseBlock.
        rows: of the maps.
        affines: what is still to be done to each map.
    """

    def __init__(self, block, rows, affines):
        self.width, inputs = block.channels, len(affines)
        self.tiles = -(-rows // conv.TILE)
        tile_rows = np.arange(conv.TILE * self.tiles)
        order = tile_rows.reshape(-1, conv.TILE).T.ravel()
        place = np.argsort(order)
        seen = (np.arange(6)[:, None] - 1 + conv.TILE * np.arange(self.tiles)).ravel()
        inside = (seen >= 0) & (seen < rows)
        self.order = np.minimum(order, rows - 1).astype("int32")
        self.windows = np.where(inside, place[np.where(inside, seen, 0)], len(order)).astype("int32")
        self.rows_inside = place[1 : rows - 1].astype("int32")

        norms = [block.norms[0], block.norms[1], block.mapping_norm, block.norms[3]]
        self.affines = [*affines, *map(Affine.of, norms)]
        self.convs = []
        for i, layer in enumerate(block.convs):
            before = self.affines[: inputs + i]
            kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
            if i == 2:
                joint = Affine(*(np.concatenate([getattr(x, name) for x in before]) for name in ("scale", "offset")))
                self.convs.append([tensor(x) for x in joint.fold(kernel[0, 0], bias)])
                continue
            kernels, biases = [], np.zeros((rows, 1, self.width)) + bias
            for affine, part in zip(before, np.split(kernel, np.cumsum(layer.widths)[:-1], axis=2)):
                sums = np.einsum("sr,rtif->stif", conv.KERNEL_SUMS, part * affine.scale[:, None])
                kernels.append(tensor(sums.reshape(len(sums), -1, self.width)))
                taps = np.einsum("rtif,i->rf", part, affine.offset)  # what the offset adds, by row of the kernel
                biases += taps.sum(axis=0)
                biases[0] -= taps[0]
                biases[-1] -= taps[2]
            self.convs.append((kernels, tensor(biases[self.order])))
        affine = Affine.of(block.norms[2])
        mapping = to_numpy(block.mapping.kernel).T  # [row out, row in]
        bias = mapping.sum(axis=1)[:, None, None] * affine.offset + to_numpy(block.mapping.bias)[:, None, None]
        mapping = np.pad(mapping, (0, len(order) - rows))[order][:, order]
        self.mapping = [tensor(x) for x in (mapping, affine.scale, bias[self.order])]

    def initial_state(self):
        """Sums of two frames before the first, for each map that a 3x3 convolution looks at."""
        shape = (len(self.order), 2, 1)
        return [self.row_sums(np.tile(affine.root, shape).astype("float32")) for affine in self.affines]

    def __call__(self, state, maps, taps):
        after, seen = [], []

        def look_at(x):
            sums = ops.concatenate([state[len(after)], self.row_sums(x)], axis=2)
            after.append(sums[:, :, -2:])
            seen.append(ops.reshape(ops.take(sums, taps, axis=2), (6, -1, 3 * x.shape[-1])))

        maps = [ops.take(x, self.order, axis=0) for x in maps]
        for x in maps:
            look_at(x)
        for i, (kernel, bias) in enumerate(self.convs):
            if i == 2:
                x = ops.elu(pointwise(ops.concatenate(maps, axis=-1), kernel, bias))
                mapping, scale, bias = self.mapping
                x = ops.matmul(mapping, ops.reshape(x, (len(self.order), -1)))
                x = ops.reshape(x, (len(self.order), -1, self.width)) * scale
            else:
                products = total([ops.matmul(x, part) for x, part in zip(seen, kernel)])
                x = ops.matmul(OUTPUT_SUMS, ops.reshape(products, (6, -1)))
                x = ops.reshape(x, (len(self.order), -1, self.width))
            x = ops.elu(x + bias)
            if i < 4:
                look_at(x)
                maps.append(x)
        return after, ops.take(x, self.rows_inside, axis=0)

    def row_sums(self, x):
        """[rows, frames, channels] -> [6, tiles, frames, channels], what conv.row_tiles gives."""
        x = ops.take(ops.pad(x, ((0, 1), (0, 0), (0, 0))), self.windows, axis=0)
        sums = ops.matmul(INPUT_SUMS, ops.reshape(x, (6, -1)))
        return ops.reshape(sums, (6, self.tiles, -1, x.shape[-1]))


# Sequential grouping ------------------------------------------------------------------------------


class StreamingGrouping:
    """Causal SequentialGrouping.

    Call: (state, frames [frames, bins, 2], estimates [talkers, frames, bins, 2]) ->
    (state, embeddings [frames, embeddings a frame, embedding_dim]).
    """

    def __init__(self, model):
        self.per_frame, self.embedding_dim = model.per_frame, model.embedding_dim
        _, self.padding = frequency_padding(model.bins, model.scales)
        self.features = [
            (tensor(layer.kernel), tensor(layer.bias), *map(tensor, (norm.gamma, norm.beta)))
            for layer, norm in zip(model.feature_convs, model.feature_norms)
        ]
        self.epsilon = model.input_norm.epsilon
        self.input = [tensor(x) for x in (model.input_conv.kernel, model.input_conv.bias)]
        self.input_affine = [tensor(x) for x in (model.input_norm.gamma, model.input_norm.beta)]
        self.blocks = [[streaming_residual_block(block) for block in blocks] for blocks in model.residuals]
        self.scales = [float(to_numpy(scale)[0]) for scale in model.block_scales]
        self.embed = [tensor(x) for x in (model.embed.kernel, model.embed.bias)]

    def initial_state(self):
        residuals = [block for blocks in self.blocks for block in blocks]
        norms = len(self.features) + 1 + 2 * len(residuals)
        return {
            "histories": [tensor(block.history) for block in residuals],
            **CumulativeMoments.initial_state(norms),
        }

    def __call__(self, state, frames, estimates):
        norm = CumulativeMoments(state["count"], state["moments"], ops.shape(frames)[0], self.epsilon)
        spectra = [frames, *ops.unstack(estimates, axis=0)]
        magnitudes = [ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)) for x in spectra]
        x = ops.concatenate([part for pair in zip(spectra, magnitudes) for part in pair], axis=-1)
        maps = ops.pad(x, ((0, 0), self.padding, (0, 0)))[:, None]  # [T, 1, F, channels]
        for kernel, bias, gamma, beta in self.features:
            x = norm(ops.elu(conv.convolve(maps, kernel, True) + bias)) * gamma + beta
            maps = ops.concatenate([maps, x], axis=-1)
        x = ops.reshape(x, (-1, x.shape[-2] * x.shape[-1]))
        gamma, beta = self.input_affine
        x = norm(pointwise(x, *self.input)) * gamma + beta
        summed, histories = [], []
        before = iter(state["histories"])
        for blocks, scale in zip(self.blocks, self.scales):
            for block in blocks:
                history, x = block(next(before), x, norm)
                histories.append(history)
            if scale:
                summed.append(x if scale == 1 else scale * x)
        embeddings = ops.tanh(pointwise(total(summed), *self.embed))
        state = {"histories": histories} | norm.after()
        return state, ops.reshape(embeddings, (-1, self.per_frame, self.embedding_dim))


def streaming_residual_block(block):
    """StreamingConvBlock of a causal ResidualBlock."""
    return StreamingConvBlock(
        block.expand,
        (block.expand_prelu, block.depthwise_prelu),
        (block.expand_norm, block.depthwise_norm),
        to_numpy(block.depthwise.kernel)[..., 0],
        None,
        block.depthwise.dilation,
        block.reduce,
    )
