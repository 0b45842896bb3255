"""Checkpoints of the original Deep CASA code (TF 1.15 Saver), by the names of their variables.

The original numbers its convolutions and norms in order of creation; `reference_names` says for every
weight of our models where it stands there. Adam and momentum slots carry the same names with a suffix.
"""

import numpy as np

STAGES = {"separator/": "dense_unet", "grouping/": "sequential_grouping"}
VANISHED = 1e-37  # powers below this are lost in float32
NOT_WEIGHTS = ("/Adam", "/Adam_1", "/Momentum", "beta1_power", "beta2_power", "global_step")


def dense_unet_names(model):
    """{weight of ours, without the model's name: reference name, or a list of them to join on the last axis}."""
    names, convolutions, norms = {}, 0, 0

    def numbered(kind, index):
        return f"separator/{kind}_{index}" if index else f"separator/{kind}"

    def convolution(ours, count=1):
        nonlocal convolutions
        for part in ("kernel", "bias"):
            theirs = [f"{numbered('conv2d', convolutions + i)}/{part}" for i in range(count)]
            names[f"{ours}/{part}"] = theirs if count > 1 else theirs[0]
        convolutions += count

    def norm(ours, batch_norm):
        nonlocal norms
        if model.causal:
            parts = dict(gamma="scale", beta="offset", moving_mean="pop_mean", moving_variance="pop_var")
            names.update({f"{ours}/{k}": f"separator/dense_{batch_norm}/{v}" for k, v in parts.items()})
        else:
            names.update({f"{ours}/{k}": f"{numbered('LayerNorm', norms)}/{k}" for k in ("gamma", "beta")})
            norms += 1

    def block(ours, place):
        for i in range(5):
            convolution(f"{ours}/conv_{i}")
            norm(f"{ours}/norm_{i}", f"{place}_{('0', '1', 'fm', '3', '4')[i]}")
            if i == 2:
                convolution(f"{ours}/mapping")
                norm(f"{ours}/mapping_norm", f"{place}_2")

    for i in range(model.scales + 1):
        if i and not model.causal:
            names[f"down_{i - 1}/kernel"] = f"separator/w{i - 1}"
        block(f"encoder_{i}", f"u_{i - 1}" if i else "-1")
    for i in range(model.scales):
        for part in ("kernel", "bias"):
            names[f"up_{i}/{part}"] = f"{numbered('conv2d_transpose', i)}/{part}"
        norm(f"up_norm_{i}", f"d_{i}_tc")
        block(f"decoder_{i}", f"d_{i}")
    convolution("hidden")
    convolution("masks", 2 * model.talkers)
    return names


def sequential_grouping_names(model):
    """As `dense_unet_names`, for the second stage."""
    names = {}
    norm = ("scale", "offset") if model.causal else ("gamma", "beta")

    def numbered(kind, index):
        return f"{kind}_{index}" if index else kind

    def norm_names(ours, causal, index, scope="grouping"):
        theirs = causal if model.causal else numbered("LayerNorm", index)
        names.update({f"{ours}/{k}": f"{scope}/{theirs}/{v}" for k, v in zip(("gamma", "beta"), norm)})

    def pointwise(ours, theirs):
        names[f"{ours}/kernel"], names[f"{ours}/bias"] = f"{theirs}/w", f"{theirs}/biases"

    for i in range(len(model.feature_convs)):
        for part in ("kernel", "bias"):
            names[f"feature_{i}/{part}"] = f"grouping/{numbered('conv2d', i)}/{part}"
        norm_names(f"feature_norm_{i}", f"pre_{i + 1}", i)
    pointwise("input", "grouping/input_process")
    norm_names("input_norm", "pre_5", 4)
    for i, series in enumerate(model.residuals):
        for j in range(len(series)):
            ours, theirs = f"block_{i}_{2**j}", f"grouping/TCN/res_{i}_{2**j}"
            pointwise(f"{ours}/expand", f"{theirs}/bn_filter")
            names[f"{ours}/expand_prelu/alpha"] = f"{theirs}/bn_prelu/alpha"
            norm_names(f"{ours}/expand_norm", "rb_1", 0, theirs)
            names[f"{ours}/depthwise/kernel"] = f"{theirs}/dilate_filter/w"
            names[f"{ours}/depthwise_prelu/alpha"] = f"{theirs}/dilate_prelu/alpha"
            norm_names(f"{ours}/depthwise_norm", "rb_2", 1, theirs)
            pointwise(f"{ours}/reduce", f"{theirs}/resyn_filter")
        names[f"block_scale_{i}"] = f"grouping/TCN/gamma_res_{i}"
    pointwise("embed", "grouping/embeddings/embed")
    return names


def reference_names(model):
    """{our weight name: name(s) in a checkpoint of the original}, for either stage's model."""
    return dense_unet_names(model) if hasattr(model, "encoder") else sequential_grouping_names(model)


def restore_slots(read, stored, model, optimizer):
    """Assigns Adam's or momentum's variables of the original to an optimiser of the same kind.

    Args:
        read: name -> array.
        stored: names in the checkpoint.

    Returns:
        False if the checkpoint holds no such variables.
    """
    names = reference_names(model)
    first = np.atleast_1d(next(iter(names.values())))[0]
    adam = hasattr(optimizer, "_velocities")
    if adam:
        slots = {"/Adam": optimizer._momentums, "/Adam_1": optimizer._velocities}
    else:
        slots = {"/Momentum": optimizer.momentums}
    if not all(first + slot in stored for slot in slots):
        return False
    for slot, variables in slots.items():
        for weight, variable in zip(model.trainable_variables, variables):
            array = join(names[weight.path.split("/", 1)[1]], read, slot)
            variable.assign(np.reshape(array, variable.shape))
    if adam:
        optimizer.iterations.assign(_adam_steps(optimizer, float(read("beta1_power")), float(read("beta2_power"))))
    return True


def _adam_steps(optimizer, beta_1_power, beta_2_power):
    """Steps done, from the powers of beta that TF 1 kept instead: beta ** (steps + 1)."""
    # One that has vanished in float32 says that there were so many at least; its bias correction has vanished too.
    first, second = (
        max(0, round(np.log(max(power, VANISHED)) / np.log(beta)) - 1)
        for power, beta in ((beta_1_power, optimizer.beta_1), (beta_2_power, optimizer.beta_2))
    )
    agree = abs(first - second) <= 1 + 0.01 * first or (beta_1_power <= VANISHED and second > first)
    # The slower one is the more exact, and the last to vanish. It may be of another --beta_2 though; beta_1 is fixed.
    return second if agree and optimizer.beta_2 > optimizer.beta_1 else first


def join(names, read, suffix=""):
    """The array that stands under a reference name, or those under several joined on the last axis."""
    if isinstance(names, str):
        return read(names + suffix)
    return np.concatenate([read(name + suffix) for name in names], axis=-1)
