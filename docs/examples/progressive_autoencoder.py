"""An autoencoder of one's own modules that goes from 4x4 to 8x8 images, with a fade."""

import os

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import splitgrow

STEPS = 5 if os.environ.get("SPLITGROW_EXAMPLE") == "small" else 300

torch.manual_seed(0)
pixels, _ = load_digits(return_X_y=True)
large = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
small = nn.functional.avg_pool2d(large, 2)

# From coarse to fine. `inner` reads 8 channels from the first day, and always will.
first = nn.Conv2d(8, 16, 3, padding=1)
inner = nn.Sequential(first, nn.ReLU())
outer = nn.Sequential(nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU())
back = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU())
front = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU())
model = splitgrow.ProgressiveAutoencoder(
    splitgrow.ProgressiveEncoder([inner, outer], [8, 4], image_channels=1, start=4),
    splitgrow.ProgressiveDecoder([back, front], [8, 4], image_channels=1, start=4),
)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


def train(images: Tensor, steps: int, fade: splitgrow.FadeSchedule | None = None) -> float:
    loss = torch.tensor(0.0)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch), batch)
        loss.backward()
        optimizer.step()
        if fade is not None:
            fade.step()
    return loss.item()


print(f"4x4: loss {train(small, STEPS):.4f}")
before = model(small[:8])
model.grow(optimizer=optimizer)
doubled = nn.functional.interpolate(before, scale_factor=2)
print("the same outputs, enlarged:", torch.equal(model(large[:8]), doubled))
print(f"8x8, fading: loss {train(large, STEPS, splitgrow.FadeSchedule(model, STEPS)):.4f}")
model.finish(optimizer=optimizer)
print(f"8x8: loss {train(large, STEPS):.4f}")
print("the inner filters are", tuple(first.weight.shape))
