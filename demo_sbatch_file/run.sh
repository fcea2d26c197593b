# What the job scripts share. They set $options and $repository, and read this file with `.`
#
#   sbatch SCRIPT [ARGUMENT ...]   one task per GPU, over one or several nodes; arguments go to `dlgsanet train` or `test`:
#                                  sbatch SCRIPT --force-yml train:total_iter=1000
#   sh SCRIPT [ARGUMENT ...]       on this machine: training with one process per GPU, by torchrun; a test in one process
#
# sbatch's own arguments, before SCRIPT, override the script's #SBATCH lines: sbatch --gres=none --time=1:00:00 SCRIPT
#
# Slurm runs a copy of SCRIPT in its spool folder, so SCRIPT asks scontrol where it came from. DLGSANET_HOME names the
# repository for a script that is kept elsewhere. Five minutes before the time limit (#SBATCH --signal) training saves its
# state and the job is queued again.

cd "$repository" || exit 2
repository=$(pwd)
[ ! -x .venv/bin/python ] || PATH=$repository/.venv/bin:$PATH
command=$(basename "$(dirname "$options")")
script=dlgsanet/$command.py
set -- -opt "$options" "$@"
[ "$command" != train ] || set -- "$@" --auto-resume

if [ -z "$SLURM_JOB_ID" ]; then
    # Those that the run can use: CUDA_VISIBLE_DEVICES may leave out some.
    gpus=0
    [ "$command" != train ] || gpus=$(python -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null)
    if [ "${gpus:-0}" -gt 1 ]; then
        exec torchrun --standalone --nproc_per_node="$gpus" "$script" "$@" --launcher pytorch
    fi
    exec python "$script" "$@"
fi

# The log goes to slurm_logs, which git ignores. So does slurm's own file, where slurm still reports a job that it ends.
mkdir -p slurm_logs
job=$SLURM_JOB_NAME-$SLURM_JOB_ID
echo "log: $repository/slurm_logs/$job.log"
out=$SLURM_SUBMIT_DIR/$job.out
ln "$out" "slurm_logs/$job.${SLURM_RESTART_COUNT:-0}.out" 2>/dev/null && rm -f "$out"
exec >>"slurm_logs/$job.log" 2>&1
[ "${SLURM_NTASKS:-1}" -le 1 ] || set -- "$@" --launcher slurm
# From slurm 22.05 on, srun does not take the job's --cpus-per-task over.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# In the background, so that the shell can pass on the signal that slurm sends before the time limit.
srun python "$script" "$@" &
child=$!
trap 'kill -USR1 $child' USR1
trap 'kill -TERM $child' TERM
while
    wait $child
    code=$?
    kill -0 $child 2>/dev/null # a signal ends `wait` before the command has ended
do :; done

# 75: training was stopped before its end and has saved its state.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
