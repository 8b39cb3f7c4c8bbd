# write: new objects only, but for marks of its own; read; expire. Uniform bucket-level access must be on.
gcloud iam roles create holdfastWrite --project=PROJECT \
  --permissions=storage.objects.create,storage.objects.get,storage.objects.list
gcloud iam roles create holdfastMarks --project=PROJECT --permissions=storage.objects.delete
gcloud iam roles create holdfastRead --project=PROJECT --permissions=storage.objects.get,storage.objects.list
gcloud iam roles create holdfastExpire --project=PROJECT \
  --permissions=storage.objects.get,storage.objects.list,storage.objects.create,storage.objects.delete

at=projects/_/buckets/BUCKET/objects/PATH
gcloud storage buckets add-iam-policy-binding gs://BUCKET --role=projects/PROJECT/roles/holdfastWrite \
  --member=serviceAccount:WRITER --condition="title=condemnsNothing,expression=!resource.name.startsWith('$at/holdfast/tombstones/') &&
  !resource.name.startsWith('$at/holdfast/holds/')"
gcloud storage buckets add-iam-policy-binding gs://BUCKET --role=projects/PROJECT/roles/holdfastMarks \
  --member=serviceAccount:WRITER --condition="title=marks,expression=resource.name.endsWith('/push.json') ||
  resource.name.startsWith('$at/holdfast/clock-') || resource.name.startsWith('$at/holdfast/check/') ||
  resource.name.startsWith('$at/holdfast/leases/') || resource.name.startsWith('$at/holdfast/restores/') ||
  resource.name == '$at/wal-g_storage_check'"
gcloud storage buckets add-iam-policy-binding gs://BUCKET --role=projects/PROJECT/roles/holdfastRead \
  --member=serviceAccount:READER --condition=None
gcloud storage buckets add-iam-policy-binding gs://BUCKET --role=projects/PROJECT/roles/holdfastExpire \
  --member=serviceAccount:EXPIRER --condition=None
