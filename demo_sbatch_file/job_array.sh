#!/bin/sh
# Upscales or scores pictures with 8 jobs of one GPU each. Every picture is done once:
#   sbatch demo_sbatch_file/job_array.sh upscale PICTURES -o RESULTS
#   sbatch demo_sbatch_file/job_array.sh benchmark WEIGHTS --data datasets/Urban100
# `dlgsanet` must be on the path: `. .venv/bin/activate` first.
# After a failure submit it again, with any number of jobs (--array=0-3): what is done already is skipped.
#SBATCH --job-name=array
#SBATCH --output=%x-%A_%a.out
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
set -eu
case ${1-} in
upscale | benchmark) exec dlgsanet "$@" --shard slurm ;;
*) echo "usage: sbatch $0 upscale|benchmark ARGUMENTS" >&2; exit 2 ;;
esac
