"""Class-incremental learning with a memory of a fixed number of bytes: which memory of past classes serves best.

Classes come in tasks. Each task leaves a memory: real images (8-bit, random or herded) or a synthetic set of any codec and
objective, counted by the bytes of its file. After each task a fresh network is trained on the memories of all classes seen
so far and on nothing else (GDumb, Prabhu et al., ECCV 2020, which DM's authors follow), and tested on each task so far; its
answers are among the classes seen. Accuracy depends on the memory alone.

Forgetting of a task: its best accuracy at an earlier time, less its accuracy at the end; the mean over all but the last.

    memory      the memory of one task
    protocol    tasks, orders, units of work, the comparison
    page        the comparison as text and as a page

Shapes: N images, K classes, T tasks.
"""
