#!/bin/sh
# Call at the end of a job script, or source from TaskEpilog. The daemon was started at the job's beginning:
#   ddct daemon run --config "$DDCT_CONFIG" 2>"ddct-$SLURM_JOB_ID.log" &
# The scheduler kills what is left soon after the job: leave time for this.
config=${DDCT_CONFIG:-ddct.toml}

ddct daemon drain --config "$config" --timeout "${DDCT_DRAIN_SECONDS:-900}"
status=$?
case $status in
0) echo "ddct: every finished checkpoint is published" ;;
14) echo "ddct: not everything was published in time; the next daemon on this state goes on" >&2 ;;
*) echo "ddct: drain failed with status $status" >&2 ;;
esac
ddct daemon status --config "$config"
exit $status
