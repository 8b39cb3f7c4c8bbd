package restore

import "testing"

// What is not known to tell of failed writes is not trusted to.
func TestSyncfsTells(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-18-amd64": true, "5.8.0": true, "5.10.0-28-cloud-amd64": true, "10.0": true,
		"5.7.19": false, "4.18.0-553.el8.x86_64": false, "3.10": false, "": false, "unknown": false,
	} {
		if got := syncfsTells(release); got != want {
			t.Errorf("%q: %t, want %t", release, got, want)
		}
	}
}

// Where each file is asked, all below the roots can be.
func TestSyncEach(t *testing.T) {
	p := &Plan{Destination: t.TempDir()}
	tree, err := openTree(p, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	if err := tree.write("base/5/1", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tree.symlink("base/link", "/nowhere"); err != nil {
		t.Fatal(err)
	}
	if err := syncEach(tree.roots()); err != nil {
		t.Error(err)
	}
}
