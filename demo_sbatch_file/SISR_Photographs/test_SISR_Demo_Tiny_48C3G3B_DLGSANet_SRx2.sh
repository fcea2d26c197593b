#!/bin/sh
#SBATCH --job-name=test_SISR_Demo_Tiny_48C3G3B_DLGSANet_SRx2
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
# One task, one GPU.
# Slurm runs a copy of this file in its spool folder: scontrol knows where it came from; DLGSANET_HOME overrules it.
script=$0
[ -z "$SLURM_JOB_ID" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')
for repository in "$DLGSANET_HOME" "$(dirname "$script")/../.." "$SLURM_SUBMIT_DIR" .; do
    [ ! -f "$repository/demo_sbatch_file/run.sh" ] || break
done

command=test
options=options/test/test_SISR_Demo_Tiny_48C3G3B_DLGSANet_SRx2.yml
. "$repository/demo_sbatch_file/run.sh"
