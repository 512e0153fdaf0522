#!/bin/bash
# What config.py starts, in this folder: on Baseten, or by `bt-lightning run`.
set -eu

python -c 'import bt_lightning' 2>/dev/null || pip install bt-lightning
python train.py
