# How checks are chosen and reported: one line each, in the words of the project's own host program.

passed=0 failed=0 not_applicable=0

# Whether a word is on the kernel's command line.
on_command_line() {
    case " $(cat /proc/cmdline) " in *" $1 "*) true ;; *) false ;; esac
}

# What the kernel's command line says after `NAME=`, the last time that it does.
value_of() {
    sed -n "s/\(^\|.* \)$1=\([^ ]*\).*/\2/p" /proc/cmdline
}

# Whether `checks=` names this check, or nothing.
wanted() {
    case ",$(value_of checks)," in ,, | *",$1,"*) true ;; *) false ;; esac
}

# refuse_unknown KNOWN...: counts it as a failure that `checks=` has another name than these.
refuse_unknown() {
    local name
    for name in $(value_of checks | tr , ' '); do
        case " $* " in *" $name "*) continue ;; esac
        echo "FAIL checks=$name: there is no such check; there are $*"
        failed=$((failed + 1))
    done
}

# Hundredths of a second since boot.
now() {
    cut -d' ' -f1 /proc/uptime | tr -d .
}

# check NAME EXPECTED: as `report`, if `checks=` wants it.
check() {
    if wanted "$1"; then report "$@"; fi
}

# report NAME EXPECTED: runs check_NAME. It prints what it saw, and answers 0 when that is what was expected, 2 when the
# check does not apply to this machine, and anything else when it failed.
report() {
    local name=$1 expected=$2 before seen status word took
    before=$(now)
    seen=$("check_$name" 2>&1)
    status=$?
    took=$(($(now) - before))
    case $status in
        0) word=pass passed=$((passed + 1)) ;;
        2) word='n/a ' not_applicable=$((not_applicable + 1)) ;;
        *) word=FAIL failed=$((failed + 1)) ;;
    esac
    seen=$(echo "$seen" | tr '\n' ';' | sed 's/;*$//; s/;/; /g')
    printf '%s %s: expected %s; seen: %s; %d.%02d s\n' \
        "$word" "$name" "$expected" "$seen" $((took / 100)) $((took % 100))
}

# Says how it went.
summary() {
    if [ $failed -ne 0 ]; then
        echo "the end of the kernel's log:"
        dmesg | tail -n 40
    fi
    echo
    [ $not_applicable -eq 0 ] || echo "$not_applicable checks do not apply to this machine."
    echo "$passed passed, $failed failed"
    if [ $failed -eq 0 ] && [ $((passed + not_applicable)) -ne 0 ]; then
        echo "outcome: pass"
    else
        echo "outcome: fail"
    fi
}
