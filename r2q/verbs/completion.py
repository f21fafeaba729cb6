"""print what makes bash complete verbs and arguments

source <(r2q completion)
"""


def completion() -> None:
    from r2q.cli import options, verbs

    cases = "\n".join(f'        {verb}) words="{" ".join(options(verb))}";;' for verb in verbs())
    print(
        "_r2q() {\n    local words\n    case ${COMP_WORDS[1]} in\n"
        f'{cases}\n        *) words="{" ".join(verbs())}";;\n    esac\n'
        '    [ $COMP_CWORD = 1 ] && words="' + " ".join(verbs()) + '"\n'
        '    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))\n'
        "}\ncomplete -o default -F _r2q r2q"
    )
