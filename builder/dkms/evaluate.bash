# Evaluates a dkms.conf and its overrides for one kernel as dkms does: each file is sourced in a subshell that has the values so
# far, and the values that it left are expanded once more. Then come the directives of the command line, as they are. Prints,
# for every element of every directive, four fields that each end in NUL: name, index, value, and a sign: of a pattern, 1 where it
# matches this kernel and bad where it is none; of a patch, 1 where its file is there. The last field is END.
#
# usage: bash -c SCRIPT bash SPOOL FILES FILE... [NAME INDEX VALUE]..., with the variables that a dkms.conf may use set by the
# prelude. The current folder is the source tree, or a copy.

__godkms_names='PACKAGE_NAME PACKAGE_VERSION BUILT_MODULE_NAME BUILT_MODULE_LOCATION DEST_MODULE_NAME DEST_MODULE_LOCATION
	STRIP MAKE MAKE_MATCH CLEAN PATCH PATCH_MATCH PRE_BUILD POST_BUILD POST_ADD PRE_INSTALL POST_INSTALL POST_REMOVE
	BUILD_EXCLUSIVE_KERNEL BUILD_EXCLUSIVE_KERNEL_MIN BUILD_EXCLUSIVE_KERNEL_MAX BUILD_EXCLUSIVE_ARCH BUILD_EXCLUSIVE_CONFIG
	OBSOLETE_BY BUILD_DEPENDS BUILD_DEPENDS_REBUILD AUTOINSTALL NO_WEAK_MODULES REMAKE_INITRD
	MODULES_CONF MODULES_CONF_OBSOLETES MODULES_CONF_ALIAS_TYPE MODULES_CONF_OBSOLETE_ONLY'
__godkms_spool=$1
__godkms_files=("${@:3:$2}")
shift $(($2 + 2))
__godkms_directives=("$@")
set --
unset $__godkms_names

# Sources a file and writes the values to the spool. As in dkms it is a function that sources: declare makes variables of it.
__godkms_source() {
	exec {__godkms_out}>"$__godkms_spool" >/dev/null
	trap : URG # without any trap, bash 5.2 becomes the program that a file's last line has behind a ; or &&
	. "$__godkms_file"
	POSIXLY_CORRECT=y # from here on no function stands before unset and the like, and with unset the others go
	unset -f builtin echo
	trap - EXIT DEBUG ERR RETURN URG
	set +euxv -f
	IFS=$' \t\n'
	for __godkms_name in $__godkms_names; do
		eval "__godkms_keys=(\${!$__godkms_name[@]})"
		for __godkms_i in "${__godkms_keys[@]}"; do
			eval "__godkms_value=\${$__godkms_name[\$__godkms_i]}"
			if ((${#__godkms_value} > 65536)); then # bash would be busy for minutes, and no command line can have it
				builtin echo "__godkms_long='$__godkms_name[$__godkms_i] has ${#__godkms_value} characters; at most 65536 are read'"
				exit 193
			fi
			__godkms_value=${__godkms_value%$'\r'}
			builtin echo "$__godkms_name[$__godkms_i]=\""$__godkms_value'"'
		done
	done >&$__godkms_out
	builtin echo '__godkms_read=1' >&$__godkms_out
	exit 193
}

__godkms_ended=
trap '[[ $__godkms_ended ]] || { builtin echo "${__godkms_file##*/}: a value ends the shell when it is expanded a second time, as dkms does" >&2; exit 65; }' EXIT
for __godkms_file in "${__godkms_files[@]}"; do
	# The values go through a file: a pipe would be open for as long as any process that the conf left behind. dkms prints
	# them unquoted, so that each run of white space, line breaks too, becomes one space. Unlike dkms, a value with a * is not
	# taken for a file name pattern.
	__godkms_status=0
	(__godkms_source) || __godkms_status=$? # as in dkms, set -e does nothing on this side of a ||
	__godkms_read= __godkms_long=
	. "$__godkms_spool" >/dev/null
	if [[ ! $__godkms_read ]]; then
		__godkms_ended=1
		if [[ $__godkms_long ]]; then
			builtin echo "${__godkms_file##*/}: $__godkms_long"
		elif [[ $(<"$__godkms_spool") == *$'\n__godkms_read=1' ]]; then
			builtin echo "${__godkms_file##*/}: a value can't be expanded a second time, as dkms does: is there a quote too many in it?"
		else
			builtin echo "${__godkms_file##*/} ended before it was read to its end (exit code $__godkms_status)"
		fi >&2
		exit 65
	fi
done

__godkms_ended=1

for ((__godkms_i = 0; __godkms_i < ${#__godkms_directives[@]}; __godkms_i += 3)); do
	eval "${__godkms_directives[__godkms_i]}[${__godkms_directives[__godkms_i + 1]}]=\${__godkms_directives[__godkms_i + 2]}"
done

for __godkms_name in $__godkms_names; do
	eval "__godkms_keys=(\${!$__godkms_name[@]})"
	for __godkms_i in "${__godkms_keys[@]}"; do
		eval "__godkms_value=\${$__godkms_name[\$__godkms_i]}"
		__godkms_sign= __godkms_against=
		case $__godkms_name in
			MAKE_MATCH | PATCH_MATCH | BUILD_EXCLUSIVE_KERNEL) __godkms_against=$kernelver ;;
			BUILD_EXCLUSIVE_ARCH) __godkms_against=$arch ;;
			PATCH) [[ -e patches/$__godkms_value ]] && __godkms_sign=1 ;;
		esac
		if [[ $__godkms_against ]]; then
			{ [[ $__godkms_against =~ $__godkms_value ]]; } 2>/dev/null
			case $? in
				0) __godkms_sign=1 ;;
				2) __godkms_sign=bad ;;
			esac
		fi
		builtin printf '%s\0' "$__godkms_name" "$__godkms_i" "$__godkms_value" "$__godkms_sign"
	done
done
builtin printf 'END\0'
