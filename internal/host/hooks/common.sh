# A module that can't be had must not fail the package manager: this ends with exit code 0, whatever happens. What failed is said
# here, by the journal, and by 'godkms-hermetic status'.
trap : HUP INT PIPE TERM
export HOME=/root XDG_CACHE_HOME=/var/cache
run() {
	command -v @PROGRAM@ >/dev/null || return 0
	@PROGRAM@ "$@" </dev/null && return 0
	message="'godkms-hermetic $*' ended with exit code $?; see 'godkms-hermetic status', and run it again once that is seen to"
	echo "godkms-hermetic: $message" >&2
	command -v logger >/dev/null && logger -t godkms-hermetic -p daemon.err -- "$message" 2>/dev/null
	return 0
}
