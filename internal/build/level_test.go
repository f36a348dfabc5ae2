package build

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/version"
)

// The API types come from etcd's module: when it is upgraded, EtcdVersion changes too, and
// its changes must be reviewed.
func TestTheLevelIsThatOfTheAPI(t *testing.T) {
	if EtcdVersion != version.Version {
		t.Errorf("this build keeps the contract of etcd %s and uses the API of %s", EtcdVersion, version.Version)
	}
	if got := EtcdVersion[:strings.LastIndex(EtcdVersion, ".")]; got != APIVersion {
		t.Errorf("the API version is %s, that of the server %s", APIVersion, EtcdVersion)
	}
}
