# Evaluates a dkms.conf for one kernel as dkms does: the file is sourced in a subshell, and the values that it left are
# expanded once more. Prints, for every element of every directive, four fields that each end in NUL: name, index, value,
# and 1 where the value is a pattern that matches this kernel. The last field is END.
#
# usage: bash -c SCRIPT bash CONF, with the variables that a dkms.conf may use set by the prelude.

__godkms_names='PACKAGE_NAME PACKAGE_VERSION BUILT_MODULE_NAME BUILT_MODULE_LOCATION DEST_MODULE_NAME DEST_MODULE_LOCATION
	STRIP MAKE MAKE_MATCH CLEAN PATCH PATCH_MATCH PRE_BUILD POST_BUILD POST_ADD PRE_INSTALL POST_INSTALL POST_REMOVE
	BUILD_EXCLUSIVE_KERNEL BUILD_EXCLUSIVE_KERNEL_MIN BUILD_EXCLUSIVE_KERNEL_MAX BUILD_EXCLUSIVE_ARCH BUILD_EXCLUSIVE_CONFIG
	OBSOLETE_BY BUILD_DEPENDS BUILD_DEPENDS_REBUILD AUTOINSTALL NO_WEAK_MODULES REMAKE_INITRD'
__godkms_conf=$1
shift

# dkms prints the values unquoted, so that each run of white space, line breaks too, becomes one space. Unlike dkms, a
# value with a * is not taken for a file name pattern.
__godkms_text=$(
	exec {__godkms_out}>&1 >/dev/null
	unset $__godkms_names
	. "$__godkms_conf"
	set +eu -f
	IFS=$' \t\n'
	trap - EXIT
	for __godkms_name in $__godkms_names; do
		eval "__godkms_keys=(\${!$__godkms_name[@]})"
		for __godkms_i in "${__godkms_keys[@]}"; do
			eval "__godkms_value=\${$__godkms_name[\$__godkms_i]%$'\r'}"
			builtin echo "$__godkms_name[$__godkms_i]=\""$__godkms_value'"'
		done
	done >&$__godkms_out
	builtin echo '__godkms_read=1' >&$__godkms_out
)
__godkms_status=$?

unset $__godkms_names
eval "$__godkms_text" >/dev/null
if [[ ! $__godkms_read ]]; then
	builtin echo "dkms.conf ended before it was read to its end (exit code $__godkms_status)" >&2
	exit 65
fi

for __godkms_name in $__godkms_names; do
	eval "__godkms_keys=(\${!$__godkms_name[@]})"
	for __godkms_i in "${__godkms_keys[@]}"; do
		eval "__godkms_value=\${$__godkms_name[\$__godkms_i]}"
		__godkms_match=
		case $__godkms_name in
			MAKE_MATCH | PATCH_MATCH | BUILD_EXCLUSIVE_KERNEL)
				[[ $kernelver =~ $__godkms_value ]] 2>/dev/null && __godkms_match=1 ;;
			BUILD_EXCLUSIVE_ARCH)
				[[ $arch =~ $__godkms_value ]] 2>/dev/null && __godkms_match=1 ;;
		esac
		builtin printf '%s\0' "$__godkms_name" "$__godkms_i" "$__godkms_value" "$__godkms_match"
	done
done
builtin printf 'END\0'
