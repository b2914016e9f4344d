# GPT-2 at its smallest size on FineWeb, in GPT-2's vocabulary, 0.5M tokens a step: one GPU or eight, the same run.
#     python data/fineweb/prepare.py --files=3                      # 2 billion tokens; pip install pyarrow
#     python train.py config/gpt2_124m.py
#     torchrun --nproc_per_node=8 train.py config/gpt2_124m.py
# The shards of llm.c and modded-nanogpt will do, too: --data=FOLDER. Lower micro_batch_size where memory is short.
#
# Not measured here. What others publish for this size, batch and context on FineWeb, validation loss by tokens (theirs
# on the first shard, ours on a thousandth of the documents, so the last digit may differ):
#     1.7 billion (3,250 steps)  3.28  modded-nanogpt's track 3, Muon with tuned rates
#     2.9 billion (5,625)        3.28  the same by Adam, "most likely undertuned"
#     3.3 billion (6,200)        3.28  modded-nanogpt's fourth record, Muon without the later changes
#     10.3 billion (19,560)      3.27  llm.c, AdamW
# At 460,000 tokens a second, seen on one H100 with Muon, this is an hour; the others' are 420,000 to 490,000 a GPU.
# The rates are those of a 55-second run at this size. Track 3 has, after its tuning: embeddings 0.7, head 0.004, Muon
# 0.025 with a weight decay of 0.05, warm-down 0.7.
data = "fineweb"
out_dir = "out/gpt2_124m"
max_steps = 3250

n_layer = 12
n_head = 6  # of width 128, which GPUs take faster than GPT-2's 12 of 64
n_embd = 768
block_size = 1024
batch_size = 512
micro_batch_size = 32
lr = 0.01
embed_lr = 0.1
muon_lr = 0.02
eval_interval = 125
eval_tokens = 1048576
