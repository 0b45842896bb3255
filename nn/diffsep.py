class ScoreOfMixture:
    """The score of states that belong to a mixture, whose spectra are computed once.

    Args:
        model: ScoreModel or CDiffuse.
        mixture: normalised, [batch, samples].
    """

    def __init__(self, model, mixture, training=False):
        self.model = model
        self.given = {"prepared": model.prepare(mixture)} if hasattr(model, "prepare") else {"mixture": mixture}
        self.given["training"] = training

    def __call__(self, x, t):
        return self.model(x, t, **self.given)
