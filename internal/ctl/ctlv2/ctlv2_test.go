package ctlv2

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"quorate/internal/ctl"
)

// fake is a member that answers every request of the v2 API in the same way, and records
// the requests. The transcripts of compat/tools show that real members' answers are
// understood.
type fake struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
	// answers by method and path; all others are "get" of an empty root.
	answers map[string]string
}

func newFake(t *testing.T, start func(http.Handler) *httptest.Server) *fake {
	t.Helper()
	f := &fake{answers: map[string]string{}}
	f.Server = start(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), body)))
	answer, ok := f.answers[r.Method+" "+r.URL.Path]
	if !ok {
		answer = `{"action":"get","node":{"key":"/","dir":true}}`
	}
	fmt.Fprintln(w, answer)
}

// tell runs a command with --no-sync and returns its output and its exit code.
func tell(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(ctl.Process{Args: append([]string{"--no-sync"}, args...), Env: env, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), code
}

// Real etcd 3.5 rejects an update of a directory, so no transcript has it.
func TestUpdatedir(t *testing.T) {
	f := newFake(t, httptest.NewServer)
	stdout, stderr, code := tell(t, nil, "--endpoints", f.URL, "updatedir", "/d", "--ttl", "100")
	if stdout != "" || stderr != "" || code != 0 {
		t.Errorf("printed %q, %q, ended with %d", stdout, stderr, code)
	}
	if want := []string{"PUT /v2/keys/d?dir=true&prevExist=true ttl=100"}; !slices.Equal(f.asked, want) {
		t.Errorf("asked %q, want %q", f.asked, want)
	}
}

func TestCertificates(t *testing.T) {
	f := newFake(t, httptest.NewTLSServer)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := tell(t, nil, "--endpoints", f.URL, "ls"); code != exitServerError || !strings.Contains(stderr, "unknown authority") {
		t.Errorf("without the authority: %q, %d", stderr, code)
	}
	if _, stderr, code := tell(t, nil, "--endpoints", f.URL, "--ca-file", ca, "ls"); code != 0 {
		t.Errorf("with the authority: %q, %d", stderr, code)
	}
	if _, stderr, code := tell(t, []string{"ETCDCTL_CA_FILE=" + ca, "ETCDCTL_ENDPOINTS=" + f.URL}, "ls"); code != 0 {
		t.Errorf("with the authority in a variable: %q, %d", stderr, code)
	}
}

func TestClusterHealth(t *testing.T) {
	well, ill := newFake(t, httptest.NewServer), newFake(t, httptest.NewServer)
	well.answers["GET /health"] = `{"health":"true"}`
	ill.answers["GET /health"] = `{"health":false}`
	gone := "http://127.0.0.1:1"
	member := func(id string, urls ...string) string {
		return fmt.Sprintf(`{"id":%q,"clientURLs":["%s"]}`, id, strings.Join(urls, `","`))
	}
	for _, c := range []struct {
		members []string
		want    string
		code    int
	}{
		{[]string{member("1", well.URL)}, "cluster is healthy", 0},
		{[]string{member("1", gone, well.URL)}, "cluster is healthy", 0},
		{[]string{member("1", well.URL), member("2", ill.URL)}, "member 2 is unhealthy: got unhealthy result from " + ill.URL + "\ncluster is degraded", exitNotHealthy},
		{[]string{`{"id":"3"}`}, "member 3 is unreachable: no available published client urls\ncluster is unavailable", exitNotHealthy},
		{[]string{member("4", gone)}, "member 4 is unreachable: [" + gone + "] are all unreachable\ncluster is unavailable", exitNotHealthy},
	} {
		well.answers["GET /v2/members"] = `{"members":[` + strings.Join(c.members, ",") + `]}`
		stdout, _, code := tell(t, nil, "--endpoints", well.URL, "cluster-health")
		if !strings.HasSuffix(stdout, c.want+"\n") || code != c.code {
			t.Errorf("%v: %d\n%s", c.members, code, stdout)
		}
	}
}

// The snapshot is one of etcd 0.4, which has keys directly below the root.
const snapshot = `{"Root":{"Path":"/","Children":{
	"a":{"Path":"/a","Value":"1","CreatedIndex":1,"ModifiedIndex":1},
	"d":{"Path":"/d","Children":{"b":{"Path":"/d/b","Value":"2"},"_h":{"Path":"/d/_h","Value":"3"}}},
	"_hidden":{"Path":"/_hidden","Children":{"c":{"Path":"/_hidden/c","Value":"4","ExpireTime":"2014-01-01T00:00:00Z"}}}}},
	"CurrentIndex":9,"CurrentVersion":2}`

func TestImport(t *testing.T) {
	f := newFake(t, httptest.NewServer)
	file := filepath.Join(t.TempDir(), "backup.snap")
	if err := os.WriteFile(file, []byte(snapshot), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := tell(t, nil, "--endpoints", f.URL, "import", "--snap", file, "--hidden", "/_hidden", "-c", "2")
	if want := "starting to import snapshot " + file + " with 2 clients\nfinished importing 3 keys\n"; stdout != want || code != 0 {
		t.Errorf("printed %q, ended with %d; %s", stdout, code, stderr)
	}
	slices.Sort(f.asked)
	if want := []string{"PUT /v2/keys/_hidden/c ttl=300&value=4", "PUT /v2/keys/a value=1", "PUT /v2/keys/d/b value=2"}; !slices.Equal(f.asked, want) {
		t.Errorf("asked %q, want %q", f.asked, want)
	}

	for _, c := range []struct{ flags, stdout, stderr string }{
		{"", "no snapshot file provided (use --snap)\n", ""},
		{"--snap none", "cannot read snapshot file none\n", ""},
		{"--snap " + file + " --hidden /x", "starting to import snapshot " + file + " with 10 clients\n", "Error:  100: Key not found (/x) [9]\n"},
		{"--snap ctlv2_test.go", "", "ctlv2_test.go: not a v2 store"},
	} {
		stdout, stderr, code := tell(t, nil, append([]string{"--endpoints", f.URL, "import"}, strings.Fields(c.flags)...)...)
		if stdout != c.stdout || !strings.Contains(stderr, c.stderr) || code == 0 {
			t.Errorf("import %s: %q, %q, %d", c.flags, stdout, stderr, code)
		}
	}
	f.Close()
	if _, stderr, code := tell(t, nil, "--endpoints", f.URL, "import", "--snap", file); code != exitError || !strings.Contains(stderr, "failed to copy key: client: etcd cluster is unavailable") {
		t.Errorf("without a cluster: %q, %d", stderr, code)
	}
}

// Lines in addition to etcdctl's texts.
func TestHints(t *testing.T) {
	web := newFake(t, httptest.NewServer)
	web.answers["GET /v2/keys/"] = "404 page not found"
	for _, c := range []struct{ args, want string }{
		{"sett /a 1", `Did you mean "etcdctl set"?`},
		{"put a b", `"put" is a command of the v3 API`},
		{"--endpoints " + web.URL + " ls", "if they were started with --enable-v2"},
		{"--endpoints 127.0.0.1:2379 ls", "An endpoint of the v2 API is a URL"},
	} {
		if _, stderr, code := tell(t, nil, strings.Fields(c.args)...); code == 0 || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: %q, %d", c.args, stderr, code)
		}
	}
}

// slow is a standard output that accepts nothing.
type slow struct{}

func (slow) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestHelp(t *testing.T) {
	var paths []string
	tool := &tool{connection: connection{Process: ctl.Process{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}}}
	for _, c := range tool.root().Commands() {
		paths = append(paths, c.Name())
		for _, below := range c.Commands() {
			paths = append(paths, c.Name()+" "+below.Name())
		}
	}
	want := strings.Split("auth,auth disable,auth enable,backup,cluster-health,exec-watch,get,import,ls,member,member add,member list,member remove,member update,"+
		"mk,mkdir,rm,rmdir,role,role add,role get,role grant,role list,role remove,role revoke,set,setdir,update,updatedir,"+
		"user,user add,user get,user grant,user list,user passwd,user remove,user revoke,watch", ",")
	slices.Sort(paths)
	if !slices.Equal(paths, want) {
		t.Errorf("commands %q", paths)
	}
	for _, p := range paths {
		stdout, stderr, code := tell(t, nil, append(strings.Fields(p), "--help")...)
		if !strings.Contains(stdout, "Usage:\n  etcdctl "+p) || stderr != "" || code != 0 {
			t.Errorf("help of %s: %q, %q, %d", p, stdout, stderr, code)
		}
	}
	if code := Run(ctl.Process{Args: []string{"help"}, Stdin: strings.NewReader(""), Stdout: slow{}, Stderr: io.Discard}); code != 0 {
		t.Errorf("ended with %d", code)
	}
}
