# The common part of the job scripts, read by them with `.`: runs `dlgsanet $command -opt $options` in $repository.
#
# Under slurm one task a GPU, over one or several nodes; otherwise one process a GPU of this machine, by torchrun when
# there are several. Arguments of the script go to the command: sbatch SCRIPT --force_yml train:total_iter=1000

cd "$repository" || exit 2
repository=$(pwd)
[ ! -x .venv/bin/python ] || PATH=$repository/.venv/bin:$PATH
script=dlgsanet/$command.py
set -- -opt "$options" "$@"
[ "$command" != train ] || set -- "$@" --auto_resume

if [ -z "$SLURM_JOB_ID" ]; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
    if [ "$command" = train ] && [ "$gpus" -gt 1 ]; then
        exec torchrun --standalone --nproc_per_node="$gpus" "$script" "$@" --launcher pytorch
    fi
    exec python "$script" "$@"
fi

mkdir -p slurm_logs
echo "log: $repository/slurm_logs/$SLURM_JOB_NAME-$SLURM_JOB_ID.log"
exec >>"slurm_logs/$SLURM_JOB_NAME-$SLURM_JOB_ID.log" 2>&1
[ "${SLURM_NTASKS:-1}" -le 1 ] || set -- "$@" --launcher slurm

# In the background, so that the shell can pass on the warning that slurm sends before the time limit.
srun python "$script" "$@" &
child=$!
trap 'kill -USR1 $child' USR1
trap 'kill -TERM $child' TERM
while
    wait $child
    code=$?
    kill -0 $child 2>/dev/null # a signal ends `wait` before the command has ended
do :; done

# 75: training was stopped before its end, has saved its state and goes on where it stopped.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
