package build

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/version"
)

// The types of the API come from etcd's module: when that is raised, this build keeps
// the contract of another release, and somebody has to look at what is new in it.
func TestTheLevelIsThatOfTheAPI(t *testing.T) {
	if EtcdVersion != version.Version {
		t.Errorf("this build keeps the contract of etcd %s and uses the API of %s", EtcdVersion, version.Version)
	}
	if got := EtcdVersion[:strings.LastIndex(EtcdVersion, ".")]; got != APIVersion {
		t.Errorf("the API version is %s, that of the server %s", APIVersion, EtcdVersion)
	}
}
