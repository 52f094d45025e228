"""Training, quantisation and measurement of the networks in models-quantized/."""

__version__ = "0.1.0"
EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
