# GPT-2 small, trained further on your own text, from a folder with config.json, model.safetensors, vocab.json and
# merges.txt:
#     python data/text/prepare.py --source=my_texts/ --tokenizer=gpt2
#     python train.py config/gpt2_finetune.py --init_from=gpt2
# Medium has n_layer, n_head, n_embd = 24, 16, 1024; large 36, 20, 1280; xl 48, 25, 1600. Not measured.
data = "text"
init_from = "gpt2"
out_dir = "out/gpt2_finetune"
max_steps = 500
max_minutes = 0

arch = "gpt2"
n_layer = 12
n_head = 12
n_embd = 768
block_size = 256  # at most 1024
dropout = 0.1
batch_size = 8
optimizer = "adamw"
lr = 3e-5
beta2 = 0.98
weight_decay = 0.01
schedule = "linear"
warmup = 0.1
eval_interval = 100
