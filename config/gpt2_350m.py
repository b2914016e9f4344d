# GPT-2 medium's size on FineWeb, in GPT-2's vocabulary, 0.5M tokens a step: one GPU or eight, the same run.
#     python data/fineweb/prepare.py                                # the whole sample, 10 billion tokens
#     torchrun --nproc_per_node=8 train.py config/gpt2_350m.py
#
# Not measured here, nor are the rates, which are those of the smaller size. modded-nanogpt's track 2 asks of this size
# a validation loss of 2.92 on FineWeb: 5.8 hours of eight H100 at first, 17 minutes in its last record. GPT-2 medium as
# published has 2.84 on OpenWebText.
data = "fineweb"
out_dir = "out/gpt2_350m"
max_steps = 15000  # 7.9 billion tokens

n_layer = 24
n_head = 8
n_embd = 1024
block_size = 1024
batch_size = 512
micro_batch_size = 16
lr = 0.01
embed_lr = 0.1
muon_lr = 0.02
eval_interval = 250
eval_tokens = 1048576
