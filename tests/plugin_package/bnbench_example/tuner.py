"""A tuner: a training loop of a dozen lines around bnbench's rows, base and adapter."""

import time

from bnbench.finetune import Job, Outcome, Point, Tuner, adapt, load_base, save_adapter


class Plain(Tuner):
    """AdamW at a fixed rate, one row a step."""

    def train(self, job: Job) -> Outcome:
        """Trains from the first step to the last; it cannot be gone on with."""
        import torch

        start, curve = time.monotonic(), []
        model = adapt(load_base(job), job.recipe)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=job.recipe.learning_rate)
        for step in range(1, job.steps + 1):
            row = job.rows[step % len(job.rows)]
            ids, labels = (torch.tensor([x], device=job.device) for x in (row.ids, row.labels))
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(Point(step, float(loss), job.recipe.learning_rate))
        save_adapter(job, model)
        return Outcome(job.steps, tuple(curve), time.monotonic() - start)
