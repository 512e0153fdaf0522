"""Which rank holds, writes and reads which part of which tensor; pure, without torch.

In: what each rank holds (shapes, meshes, placements). Out: who writes which box, and which bytes
fill which box. Each item of a tensor is written once and read once, or it is an error; every rank
computes the same by itself. A *box* is the part of a tensor that a rank holds; a *layout* says
which, for all ranks of a mesh; the *structure* of a state has the layouts of all its tensors; a
*part* is what one rank adds to a save.

Start at `write_plan`.
"""
