"""Looking to Listen"""

from models import losses


class AudioVisualSeparation:
    def __init__(self, model, gamma=0.0):
        self.model = model
        self.gamma = gamma

    def spectral_loss(self, estimates, sources):
        return losses.discriminative_loss(estimates, sources, self.gamma)
