"""uint8 images → logits: network · weights · optim. The door to timm."""
