"""A classifier over very many classes: each step draws some, and the processes of a job hold a part of them each.

X. An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC",
arXiv:2203.15565.

sampled     `SampledClassifier`: what a step draws, the softmax over all processes, its gradient
protocols   `Classifier`, `Rows`: what the rest of a training asks of it
part        which classes each process holds
class_rows  `ClassRows`: the class vectors of a process, on a CPU, and their arithmetic
gpu_rows    `GpuClassifier`, `GpuRows`: the same on a GPU, by Paddle's operators
row_rules   the optimizers' steps for the vectors that were drawn
head_file   the file of all class vectors in a checkpoint
"""
