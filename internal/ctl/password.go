package ctl

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// askPassword is AskPassword without the white space around the password.
func (a *app) askPassword(prompt string) (string, error) {
	line, err := a.AskPassword(prompt)
	if err != nil {
		return "", fmt.Errorf("failed during password entry: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// AskPassword prompts on standard output and reads one line of standard input, which a
// terminal does not echo.
func (p Process) AskPassword(prompt string) (string, error) {
	fmt.Fprint(p.Stdout, prompt)
	if f, ok := p.Stdin.(*os.File); ok {
		defer hideInput(f)()
	}
	line, err := readLine(p.Stdin)
	fmt.Fprintln(p.Stdout)
	return strings.TrimSuffix(line, "\r"), err
}

// readLine reads up to a newline or the end of the input, and no byte further: the rest may
// be input of another program.
func readLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for {
		n, err := r.Read(b[:])
		if n == 1 {
			if b[0] == '\n' {
				return string(line), nil
			}
			line = append(line, b[0])
		}
		if err == io.EOF {
			return string(line), nil
		}
		if err != nil {
			return "", err
		}
	}
}
