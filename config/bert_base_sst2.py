# SST-2 from the published BERT-base: a folder with its config.json, model.safetensors and vocab.txt.
#     python finetune.py config/bert_base_sst2.py --init_from=bert-base-uncased
# The recipe of arXiv:1810.04805, which reports 92 to 93 % of the validation set. Not measured here.
data = "sst2"
init_from = "bert-base-uncased"
out_dir = "out/bert_base_sst2"

max_length = 64
pool = "cls"
batch_size = 32
epochs = 3
optimizer = "adamw"
lr = 2e-5
