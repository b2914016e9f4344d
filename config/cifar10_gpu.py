# CIFAR-10 on one GPU in minutes. Not measured: neither the accuracy nor the minutes; config/cifar10.py was.
data = "cifar10"
out_dir = "out/cifar10_gpu"

n_layer = 6
n_head = 4
n_embd = 256
patch = 4
augment = "flip,crop,cutout,mixup"
batch_size = 512
epochs = 100
compile = "true"
dropout = 0.0
head_dropout = 0.0
lr = 2e-3
muon_lr = 0.02
head_lr = 0.01
weight_decay = 0.01
average = 0.999
log_interval = 50
eval_interval = 440
