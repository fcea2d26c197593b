#!/bin/sh
# Upscales a folder with 8 jobs of one GPU each: sbatch demo_sbatch_file/upscale_array.sh PICTURES RESULTS
# Every picture is done once. After a failure submit it again: results that are there already are skipped.
#SBATCH --job-name=upscale
#SBATCH --output=%x-%A_%a.out
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
set -eu
[ $# -eq 2 ] || { echo "usage: sbatch $0 PICTURES RESULTS" >&2; exit 2; }
exec dlgsanet upscale "$1" -o "$2" --weights "${WEIGHTS:-Tiny}" --shard slurm
