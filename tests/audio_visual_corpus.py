"""A tiny audio-visual corpus: pseudo speech, and faces whose embeddings say whose."""

import json

import numpy as np
from speech import voice

from feat.signals.audio import write_pcm16

RATE = 16000
SIZE = 4


def write_corpus(folder, videos=4, parts=2, seconds=1.0, talkers=2, rows=None, noise=False):
    """Writes audio/, embed/, mixed/, train.csv and val.csv; gives `folder`.

    Args:
        rows: of each table; None: 6 and 2.
    """
    generator = np.random.default_rng(0)
    signals = {}
    (folder / "embed").mkdir(parents=True, exist_ok=True)
    for video in range(videos):
        for part in range(parts):
            stem = f"video{video:06d}_5000_4000_final_part{part}"
            signals[stem] = voice(2 * video, part, seconds, RATE)
            write_pcm16(folder / "audio" / f"{stem}.wav", signals[stem], RATE)
            images = np.zeros((round(25 * seconds), SIZE), np.float32)
            images[:, video % SIZE] = 1
            np.save(
                folder / "embed" / f"{stem}.npy", images + 0.01 * generator.standard_normal(images.shape, np.float32)
            )
    (folder / "embed" / "embedder.json").write_text(json.dumps({"name": "numbers", "size": SIZE}))
    number = 0
    for table, count in (rows or {"train": 6, "val": 2}).items():
        columns = [f"{kind}_{i + 1}" for kind in ("video", "audio") for i in range(talkers)] + ["mixed_audio"]
        lines = [",".join(columns)]
        for _ in range(count):
            chosen = generator.permutation(videos)[:talkers]
            stems = [f"video{v:06d}_5000_4000_final_part{generator.integers(parts)}" for v in chosen]
            write_pcm16(folder / "mixed" / f"{number}.wav", np.mean([signals[s] for s in stems], axis=0), RATE)
            clips = [stem.rsplit("_part", 1)[0] + ".mp4" for stem in stems]
            lines.append(",".join([*clips, *(f"audio/{stem}.wav" for stem in stems), f"mixed/{number}.wav"]))
            number += 1
        (folder / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return folder
