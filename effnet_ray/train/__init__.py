"""Training: metrics · checkpoint · loop (plain torch), then record · worker · finetune (Ray)."""
